"""One file that holds all a PPO run needs to take the identical next step; written whole or not at all.

Left out: history. Only the newest checkpoint is kept; its file is replaced in one rename.
"""

import os
from pathlib import Path
from typing import Any

import torch

from selfplay.errors import ConfigError

NAME = "checkpoint.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and containers of them) to directory/checkpoint.pt, atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{NAME}.partial"
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, directory / NAME)


def load_checkpoint(directory: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The state in a directory, on the CPU, or None if there is none.

    Raises ConfigError if it was written with other settings: `fingerprint` is compared with the state's own.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    changed = [key for key in fingerprint if state["fingerprint"].get(key) != fingerprint[key]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{path} was written with {key} = {state['fingerprint'].get(key)!r}, and now it is "
            f"{fingerprint[key]!r}: put it back, or delete the file to start PPO anew"
        )
    return dict(state)
