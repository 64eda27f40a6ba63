"""Supervised training on token ids with TRL's SFTTrainer: pretraining on text, fine-tuning on demonstrations."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import align_special_tokens
from trl import SFTConfig, SFTTrainer

from selfplay import stopping
from selfplay.config import Optimisation
from selfplay.errors import Diverged
from selfplay.models import encode_prompt
from selfplay.progress import Meter, meter
from selfplay.records import Prompt
from selfplay.storage import durable
from selfplay.training.checkpoints import WRITING, logged, newest, publish, step_of

SMALLEST_FOR_BFLOAT16 = 20_000_000


def prefers_bfloat16(model: PreTrainedModel) -> bool:
    """Return whether training is faster in bfloat16: on a GPU, and on a CPU with AMX for all but tiny models.

    Measured on two cores with AMX: 0.7M parameters train 1.4 times as fast in float32, since converting costs more than
    multiplying.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() and model.num_parameters() >= SMALLEST_FOR_BFLOAT16


def trainer_options(
    model: PreTrainedModel, training: Optimisation, directory: Path, seed: int, checkpoint_every: int
) -> dict[str, Any]:
    """Return the arguments that every trainer of ours shares; nothing is reported but through our own callback."""
    return {
        "output_dir": str(directory / WRITING),
        "max_steps": training.steps,
        "per_device_train_batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "adam_beta2": 0.95,
        "warmup_steps": training.warmup,
        "lr_scheduler_type": training.schedule,
        "seed": seed,
        "data_seed": seed,
        "bf16": prefers_bfloat16(model),
        "gradient_checkpointing": torch.cuda.is_available(),  # room for a whole batch of any policy that PPO fits
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "logging_steps": 1,  # so that no loss waits to be averaged wherever a training is stopped
        "logging_nan_inf_filter": False,  # which would log the mean of the losses before instead
        "disable_tqdm": True,
        "save_only_model": False,
        "save_strategy": "steps",
        "save_steps": checkpoint_every,
    }


def one_device(arguments: Any) -> Any:
    """Return trainer arguments that use one GPU: with several, `batch_size` would be multiplied by their number."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class Watcher(TrainerCallback):
    """Moves a meter, publishes each checkpoint, and stops a training whose loss is not a number, or that a signal stops."""

    def __init__(self, bar: Meter, label: str, directory: Path) -> None:
        self.bar, self.label, self.directory = bar, label, directory
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an optimizer step, and ask for a checkpoint behind it if a signal asked to stop."""
        control.should_save = control.should_save or stopping.requested()
        self.bar.advance(state.global_step - self.bar.done, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Look at the numbers that the trainer logs. Raises Diverged if the loss or its gradient is not finite."""
        for name, key in (("loss", "loss"), ("gradient's norm", "grad_norm")):
            value = (logs or {}).get(key, 0.0)
            if not math.isfinite(value):
                raise Diverged(
                    f"{self.label} diverged: at step {state.global_step} of {state.max_steps} the {name} is {value}. "
                    "Lower its learning_rate or raise its warmup in a new output; if it starts from a model of yours, "
                    "check that the model's own weights are finite"
                )
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a checkpoint that is now written in its place. Raises Stopped if a signal asked to stop."""
        publish(self.directory, state.global_step)
        stopping.check()


def train_or_load(trainer: Any, directory: Path, label: str) -> list[dict[str, float]]:
    """Train a trainer's model in place to its last step, and return what was logged, the same after any kills.

    A killed training goes on from its last complete checkpoint under `directory`; of one that had come to its end, the
    result is loaded. Raises Diverged for a loss that is not a number, NotWritten where the disk refuses a checkpoint, Stopped
    where a signal asked to stop, behind a checkpoint of the step that was under way.
    """
    checkpoint, steps = newest(directory), trainer.args.max_steps
    if checkpoint is not None and step_of(checkpoint) == steps:
        align_special_tokens(trainer.model, trainer.processing_class)  # as training does first
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        if checkpoint is not None:
            trainer._total_train_tokens = int(logged(checkpoint)[-1]["num_tokens"])  # of which TRL saves nothing
        with meter(label, steps, "steps") as bar:
            trainer.remove_callback(PrinterCallback)  # which prints what our meter shows already
            trainer.add_callback(Watcher(bar, label, directory))
            with durable.naming(directory / WRITING):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        checkpoint = directory / f"step-{steps}"
    trainer.model.eval()
    return logged(checkpoint)


def train_supervised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    training: Optimisation,
    directory: Path,
    seed: int,
    label: str,
) -> list[dict[str, float]]:
    """Train `model` in place on rows of `input_ids` and `labels` (-100 where there is no loss); see `train_or_load`."""
    set_seed(seed)
    options = trainer_options(model, training, directory, seed, checkpoint_every=max(20, training.steps // 4))
    config = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, packing=False)
    trainer = SFTTrainer(
        model=model, args=one_device(config), train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer
    )
    return train_or_load(trainer, directory, label)


def document_rows(documents: Sequence[list[int]], longest: int) -> list[dict[str, list[int]]]:
    """Return one row per document, or several if it is longer than `longest` tokens; two documents never share a row.

    Packing would fill the rows better, but a small model then attends to its neighbour's text and is much slower to
    learn to look up its own.
    """
    pieces = [ids[start : start + longest] for ids in documents for start in range(0, len(ids), longest)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) > 1]


def demonstration_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Prompt, str]], longest: int
) -> list[dict[str, list[int]]]:
    """Prompt, response and end token as ids; the loss is on the response and its end. Rows over `longest` are dropped."""
    rows = []
    for prompt, response in pairs:
        ids = encode_prompt(tokenizer, prompt)
        answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) + len(answer) <= longest:
            rows.append({"input_ids": ids + answer, "labels": [-100] * len(ids) + answer})
    return rows
