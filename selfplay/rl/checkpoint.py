"""One file that holds all a PPO run needs to take the identical next step; written whole or not at all.

`checkpoint.json` beside it, sealed, holds the checksums that the file may have: that of the newest checkpoint and of the one
before, since a kill may come between the two files. The logs are cut back to where they were at the checkpoint, whose state
knows their sizes and checksums. Left out: history. Only the newest checkpoint is kept; its file is replaced in one rename.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from selfplay.errors import ConfigError
from selfplay.storage import durable
from selfplay.storage.checksums import Damaged, check_of_file, fast_hash_of_file, read_sealed, write_sealed

NAME = "checkpoint.pt"
SUMS = "checkpoint.json"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and containers of them) to directory/checkpoint.pt. Raises NotWritten."""
    directory.mkdir(parents=True, exist_ok=True)
    path, sums = directory / NAME, directory / SUMS
    with durable.replacing(path) as beside:
        with open(beside, "wb") as file:
            torch.save(state, file)
        before = [check_of_file(path)] if path.is_file() else []
        write_sealed(sums, {"checkpoints": [check_of_file(beside), *before]})


def load_checkpoint(directory: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state in a directory, on the CPU, or None if there is none.

    Raises Damaged for a file that is not what was written, and ConfigError if it was written with other settings:
    `fingerprint` is compared with the state's own.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    check_checkpoint(directory)
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


def check_checkpoint(directory: Path) -> None:
    """Raise Damaged if checkpoint.pt is not one that was written here; one of a format before 2 passes."""
    path, sums = directory / NAME, directory / SUMS
    if not sums.is_file():
        return
    known = read_sealed(sums, _way_out(directory))["checkpoints"]
    if not path.is_file():
        raise Damaged(path, "it is not there any more", _way_out(directory))
    if check_of_file(path) not in known:
        size = f"; it has {path.stat().st_size:,} bytes, and {int(known[0].split()[0]):,} were written"
        raise Damaged(path, f"its bytes are not those that were written{size}", _way_out(directory))


def _way_out(directory: Path) -> str:
    return f"delete {str(directory)!r}, and PPO begins this training anew"


def logged_so_far(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Force logs to disk and return the size and checksum of each that is there, for a checkpoint's state."""
    found = {}
    for name in names:
        if (directory / name).is_file():
            durable.sync(directory / name)
            found[name] = check_of_file(directory / name)
    return found


def cut_logs(directory: Path, names: Iterable[str], known: dict[str, str]) -> None:
    """Cut logs back to where they were at a checkpoint, and remove those that were not there yet.

    Raises Damaged for a log whose part up to there has changed.
    """
    for name in names:
        path = directory / name
        if name not in known:
            durable.remove(path)
            continue
        size, check = known[name].split()
        if not path.is_file() or path.stat().st_size < int(size) or fast_hash_of_file(path, int(size)) != check:
            raise Damaged(path, "it does not begin as it did at the last checkpoint", _way_out(directory))
        if os.path.getsize(path) > int(size):
            durable.truncate(path, int(size))
