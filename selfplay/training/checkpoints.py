"""Checkpoints of a supervised training: each is complete or absent, and holds what was logged up to its step.

The trainer writes a checkpoint file by file, so a kill or a full disk leaves a part of one. It writes into `writing/`;
once all files are on disk, with the checksum of each in `checks.json`, the folder is renamed to `step-N` and older ones
are removed. A start removes whatever is not complete and goes on from what is. The checkpoint of the last step is the
result of the training: a later start loads it and does not train again. Left out: more than one checkpoint.
"""

from pathlib import Path
from typing import Any

from selfplay.progress import log
from selfplay.storage import durable
from selfplay.storage.checksums import is_complete, write_checks
from selfplay.storage.files import read_json

WRITING = "writing"


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("step-"))


def logged(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the rows that the trainer had logged up to a checkpoint, each with its `step`."""
    rows: list[dict[str, Any]] = read_json(checkpoint / "trainer_state.json")["log_history"]
    return rows


def publish(directory: Path, step: int) -> None:
    """Put the checkpoint that the trainer has just written in place of the one before. Raises NotWritten."""
    written, final = directory / WRITING / f"checkpoint-{step}", directory / f"step-{step}"
    write_checks(written)
    durable.publish(written, final)
    for other in directory.glob("step-*"):
        if other != final:
            durable.remove_tree(other)


def newest(directory: Path) -> Path | None:
    """Return the last complete checkpoint under a training's folder, or None; remove everything else there.

    One whose files are not those that were written is removed too, with a line that says so: the steps up to it are
    taken again, and give the same weights.
    """
    durable.sweep(directory)
    durable.remove_tree(directory / WRITING)
    found = None
    for checkpoint in sorted(directory.glob("step-*"), key=step_of, reverse=True):
        if found is None and is_complete(checkpoint):
            found = checkpoint
            continue
        if found is None:
            log(f"  {checkpoint} is damaged and was removed; its steps are taken again")
        durable.remove_tree(checkpoint)
    return found
