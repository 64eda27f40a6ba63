"""One file that holds all a PPO run needs to take the identical next step; written whole or not at all.

`checkpoint.json` beside it, sealed, holds the checksums of the newest checkpoint and of the one before, since a kill may come
between the two files, and for each those of the logs up to it, to which they are cut back. Left out: history. Only the newest
checkpoint is kept; its file is replaced in one rename.
"""

import json
from pathlib import Path
from typing import Any

import torch

from selfplay.errors import ConfigError
from selfplay.storage import durable
from selfplay.storage.checksums import Damaged, check_of_file, fast_hash_of_file, read_sealed, write_sealed
from selfplay.storage.files import read_json_lines

NAME = "checkpoint.pt"
SUMS = "checkpoint.json"
LOGS = ("metrics.jsonl", "samples.jsonl")


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and containers of them) to directory/checkpoint.pt. Raises NotWritten.

    The logs beside it are forced to disk first: a resume cuts them back to what they are now.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, sums = directory / NAME, directory / SUMS
    logs = {name: check_of_file(directory / name) for name in LOGS if (directory / name).is_file()}
    for name in logs:
        durable.sync(directory / name)
    with durable.replacing(path) as beside:
        with open(beside, "wb") as file:
            torch.save(state, file)
        there = [check_of_file(path)] if path.is_file() else []
        before = read_sealed(sums)["checkpoints"] if sums.is_file() else []
        kept = [one for one in before if [one["checkpoint"]] == there]
        write_sealed(sums, {"checkpoints": [{"checkpoint": check_of_file(beside), "logs": logs}, *kept]})


def load_checkpoint(directory: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state in a directory, on the CPU, or None if there is none.

    Raises Damaged for a file that is not what was written, and ConfigError if it was written with other settings:
    `fingerprint` is compared with the state's own.
    """
    path = directory / NAME
    check_checkpoint(directory)
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = [key for key in fingerprint if state["fingerprint"].get(key) != fingerprint[key]]
    except Exception as error:  # whatever torch and pickle make of a damaged file
        raise Damaged(path, f"it cannot be read ({type(error).__name__})", _way_out(directory)) from None
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{path} was written with {key} = {state['fingerprint'].get(key)!r}, and now it is "
            f"{fingerprint[key]!r}: put it back, or delete the file to start PPO anew"
        )
    return dict(state)


def check_checkpoint(directory: Path) -> dict[str, str] | None:
    """Return the sizes and checksums that the logs had at the checkpoint; None for one of a format before 2, or none.

    Raises Damaged if the checkpoint, or a log's part up to it, is not what was written.
    """
    path, sums = directory / NAME, directory / SUMS
    if not sums.is_file() or not path.is_file():
        return None
    known = read_sealed(sums, _way_out(directory))["checkpoints"]
    there = check_of_file(path)
    found = next((one for one in known if one["checkpoint"] == there), None)
    if found is None:
        raise Damaged(path, f"its {path.stat().st_size:,} bytes are not those that were written", _way_out(directory))
    for name, check in found["logs"].items():
        log, size = directory / name, int(check.split()[0])
        if not log.is_file() or log.stat().st_size < size or f"{size} {fast_hash_of_file(log, size)}" != check:
            raise Damaged(log, "it does not begin as it did at the last checkpoint", _way_out(directory))
    logs: dict[str, str] = found["logs"]
    return logs


def restore_logs(directory: Path, steps_done: int) -> None:
    """Cut the logs back to what they were at the checkpoint of so many steps; without one they begin anew.

    Raises Damaged as `check_checkpoint` does, and NotWritten.
    """
    known = check_checkpoint(directory)
    for path in (directory / name for name in LOGS):
        if not steps_done:
            durable.remove(path)
        elif known is None:
            forget_rows_from(path, steps_done + 1)
        elif path.name not in known:
            durable.remove(path)
        elif path.stat().st_size > (size := int(known[path.name].split()[0])):
            durable.truncate(path, size)


def forget_rows_from(path: Path, step: int) -> None:
    """Drop a log's rows of `step` and later, and a last line cut short by a kill: for checkpoints of a format before 2."""
    if path.is_file():
        kept = [row for row in read_json_lines(path) if row["step"] < step]
        durable.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _way_out(directory: Path) -> str:
    return f"delete {str(directory)!r}, and PPO begins this training anew"
