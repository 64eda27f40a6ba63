"""Supervised training on token ids with TRL's SFTTrainer: pretraining on text, fine-tuning on demonstrations."""

import math
from collections.abc import Callable, Sequence
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
from selfplay.distributed.collectives import all_gather, barrier, from_first, rank, world_size
from selfplay.errors import ConfigError, Diverged
from selfplay.models import encode_prompt
from selfplay.progress import Meter, meter
from selfplay.records import Prompt
from selfplay.storage import durable
from selfplay.training.checkpoints import WRITING, logged, newest, publish, step_of
from selfplay.weights.finite import unusable_weight
from selfplay.weights.precision import preferred


def trainer_options(
    model: PreTrainedModel, training: Optimisation, directory: Path, seed: int, checkpoint_every: int
) -> dict[str, Any]:
    """Return the arguments that every trainer of ours shares; nothing is reported but through our own callback.

    Several processes share each batch. Raises ConfigError for one that cannot be dealt evenly.
    """
    if training.batch_size % world_size():
        raise ConfigError(
            f"a batch of {training.batch_size} cannot be dealt evenly to {world_size()} workers: make batch_size a multiple of "
            "it, or change launch.workers"
        )
    return {
        "output_dir": str(directory / WRITING),
        "max_steps": training.steps,
        "per_device_train_batch_size": training.batch_size // world_size(),
        "ddp_backend": "gloo" if world_size() > 1 and not torch.cuda.is_available() else None,
        "ddp_find_unused_parameters": False,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "adam_beta2": 0.95,
        "warmup_steps": training.warmup,
        "lr_scheduler_type": training.schedule,
        "seed": seed,
        "data_seed": seed,
        "bf16": preferred(model) == "bfloat16",
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
    """Moves a meter, publishes each checkpoint, and stops a training that diverged, or that a signal stops."""

    def __init__(self, bar: Meter, label: str, directory: Path) -> None:
        self.bar, self.label, self.directory = bar, label, directory
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an optimizer step, and ask for a checkpoint behind it if a signal asked to stop.

        Raises Diverged if the last step left weights that no model computes with, for no later loss would tell.
        """
        if state.global_step >= state.max_steps:
            found = unusable_weight(kwargs["model"].parameters())
            if found is not None:
                raise self._diverged(state, "a weight", found)
        control.should_save = control.should_save or any(all_gather(stopping.requested()))
        self.bar.advance(state.global_step - self.bar.done, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Look at the numbers that the trainer logs. Raises Diverged if the loss or its gradient is not finite."""
        for name, key in (("the loss", "loss"), ("the gradient's norm", "grad_norm")):
            value = (logs or {}).get(key, 0.0)
            if not math.isfinite(value):
                raise self._diverged(state, name, value)
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"

    def _diverged(self, state: Any, name: str, value: float) -> Diverged:
        """Return the error that says what is not a usable number at a step."""
        return Diverged(
            f"{self.label} diverged: at step {state.global_step} of {state.max_steps} {name} is {value}. "
            "Lower its learning_rate or raise its warmup in a new output; if it starts from a model of yours, "
            "check that the model's own weights are finite"
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a checkpoint that is now written in its place. Raises Stopped if a signal asked to stop."""
        barrier()
        if rank() == 0:
            publish(self.directory, state.global_step)
        barrier()
        if any(all_gather(stopping.requested())):
            raise stopping.stopped()


def train_or_load(trainer: Any, directory: Path, label: str) -> list[dict[str, float]]:
    """Train a trainer's model in place to its last step, and return what was logged, the same after any kills.

    A killed training goes on from its last complete checkpoint under `directory`; of one that had come to its end, the
    result is loaded. Raises Diverged for a loss or a last weight that is not a number, NotWritten where the disk refuses a
    checkpoint, Stopped where a signal asked to stop, behind a checkpoint of the step that was under way.
    """
    checkpoint, steps = from_first(lambda: newest(directory)), trainer.args.max_steps
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
    """Train `model` in place on rows of `input_ids` and `labels` (-100 where there is no loss); see `train_or_load`.

    Rows with `position_ids` hold several texts each, which do not see one another (`packed_rows`).
    """
    set_seed(seed)
    options = trainer_options(model, training, directory, seed, checkpoint_every=max(20, training.steps // 4))
    config = SFTConfig(
        **options,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        remove_unused_columns=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=one_device(config),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=packed_collator(model, tokenizer) if "position_ids" in rows[0] else None,
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
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Prompt | None, str]],
    longest: int,
    completion_only: bool = True,
) -> list[dict[str, list[int]]]:
    """Return prompt, response and end token as ids, with labels on the response and its end, or on all of it.

    Without a prompt, the text and its end are learned whole. Rows over `longest` tokens are dropped.
    """
    rows = []
    for prompt, response in pairs:
        ids = [] if prompt is None else encode_prompt(tokenizer, prompt)
        answer = list(tokenizer(response, add_special_tokens=prompt is None)["input_ids"])
        if not answer or answer[-1] != tokenizer.eos_token_id:
            answer.append(tokenizer.eos_token_id)
        if len(ids) + len(answer) <= longest:
            unlearned = [-100] * len(ids) if completion_only else ids
            rows.append({"input_ids": ids + answer, "labels": unlearned + answer})
    return rows


def packed_rows(rows: Sequence[dict[str, list[int]]], longest: int) -> list[dict[str, list[int]]]:
    """Return fewer rows of at most `longest` tokens that hold the given ones: longest first, each where it first fits.

    `position_ids` count from 0 in each text anew, which keeps attention within it; its first token has no label, since
    nothing before it belongs to it.
    """
    bins: list[list[dict[str, list[int]]]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        size = len(row["input_ids"])
        place = next((place for place, left in enumerate(room) if left >= size), None)
        if place is None:
            bins.append([row])
            room.append(longest - size)
        else:
            bins[place].append(row)
            room[place] -= size
    return [
        {
            "input_ids": [token for row in held for token in row["input_ids"]],
            "labels": [label for row in held for label in (-100, *row["labels"][1:])],
            "position_ids": [place for row in held for place in range(len(row["input_ids"]))],
        }
        for held in bins
    ]


def packed_collator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    """Return what makes a batch of packed rows: no attention mask, for `position_ids` say where a text begins.

    Attention that is given its masks gets padded rows (B, T), whose padding is a text of its own; flash attention, which
    reads positions only from a single row, gets all of them in one (1, B T).
    """
    single = str(model.config._attn_implementation).startswith("flash")
    padding = {"input_ids": tokenizer.pad_token_id, "labels": -100}

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        keys = ("input_ids", "labels", "position_ids")
        if single:
            return {key: torch.tensor([[value for row in rows for value in row[key]]]) for key in keys}
        width = max(len(row["input_ids"]) for row in rows)
        behind = [width - len(row["input_ids"]) for row in rows]
        filled = {
            key: [row[key] + [value] * n for row, n in zip(rows, behind, strict=True)] for key, value in padding.items()
        }
        places = [row["position_ids"] + list(range(n)) for row, n in zip(rows, behind, strict=True)]
        return {key: torch.tensor(values) for key, values in (filled | {"position_ids": places}).items()}

    return collate
