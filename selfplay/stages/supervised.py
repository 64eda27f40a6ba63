"""Supervised training on token ids with TRL's SFTTrainer: pretraining on text, fine-tuning on demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from selfplay.config import Optimisation
from selfplay.models import encode_prompt
from selfplay.progress import Meter, meter
from selfplay.records import Prompt

SMALLEST_FOR_BFLOAT16 = 20_000_000


def prefers_bfloat16(model: PreTrainedModel) -> bool:
    """Whether training is faster in bfloat16: on a GPU, and on a CPU with AMX for all but tiny models.

    Measured on two cores with AMX: 0.7M parameters train 1.4 times as fast in float32, since converting costs more than
    multiplying.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() and model.num_parameters() >= SMALLEST_FOR_BFLOAT16


def trainer_options(
    model: PreTrainedModel, training: Optimisation, directory: Path, seed: int, checkpoint_every: int = 0
) -> dict[str, Any]:
    """Arguments that every trainer of ours shares; nothing is reported but through our own callback."""
    return {
        "output_dir": str(directory),
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
        "logging_steps": 10,
        "disable_tqdm": True,
        "save_only_model": False,
        "save_strategy": "steps" if checkpoint_every else "no",
        "save_steps": checkpoint_every or 500,
        "save_total_limit": 1,
    }


def one_device(arguments: Any) -> Any:
    """Trainer arguments that use one GPU where there are several: else `batch_size` would be multiplied by their number."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class Watcher(TrainerCallback):
    """Moves a meter and keeps the numbers that the trainer logs."""

    def __init__(self, bar: Meter) -> None:
        self.bar = bar
        self.rows: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimiser step is done."""
        self.bar.advance(state.global_step - self.bar.done, self._note())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """The trainer has numbers."""
        self.rows.append({"step": state.global_step, **(logs or {})})

    def _note(self) -> str:
        losses = [row["loss"] for row in self.rows if "loss" in row]
        return f"loss {losses[-1]:.3f}" if losses else ""


def train_supervised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    training: Optimisation,
    directory: Path,
    seed: int,
    label: str,
) -> list[dict[str, float]]:
    """Train `model` in place on rows of `input_ids` and `labels` (-100 where there is no loss); gives what was logged.

    A killed training goes on from the last checkpoint under `directory`.
    """
    set_seed(seed)
    options = trainer_options(model, training, directory, seed, checkpoint_every=max(20, training.steps // 4))
    config = one_device(
        SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, packing=False)
    )
    with meter(label, training.steps, "steps") as bar:
        watcher = Watcher(bar)
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            callbacks=[watcher],
        )
        quiet(trainer)
        trainer.train(resume_from_checkpoint=last_checkpoint(directory))
    model.eval()
    return watcher.rows


def quiet(trainer: Any) -> None:
    """Stop a trainer from printing what our meter shows already."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint of a killed training, or None."""
    return get_last_checkpoint(str(directory)) if directory.is_dir() else None


def document_rows(documents: Sequence[list[int]], longest: int) -> list[dict[str, list[int]]]:
    """One row per document, or several if it is longer than `longest` tokens; two documents never share a row.

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
