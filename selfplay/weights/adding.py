"""A checkpoint with something added to some of its weights: the files are copied, and changed there one tensor at a time.

So no process ever holds the whole of it. Left out: other formats than safetensors.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from selfplay.storage import durable
from selfplay.weights.saving import ROUNDING_SEED, rounded

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the precisions that weights can be added to in."""


class Place(NamedTuple):
    """Where a tensor lies: its file's name, the bytes from `start` to `end`, its precision and its shape."""

    file: str
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def places_of(directory: Path) -> dict[str, Place]:
    """Return where each floating-point weight of a checkpoint lies, by its name; none without safetensors files."""
    return dict(found for file in sorted(directory.glob("*.safetensors")) for found in _places_in(file))


def _places_in(path: Path) -> Iterator[tuple[str, Place]]:
    """Yield a file's tensors by the header of the format: its length in 8 bytes, JSON, and the tensors behind it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, one in header.items():
        if name != "__metadata__" and one["dtype"] in DTYPES:
            start, end = (8 + length + offset for offset in one["data_offsets"])
            yield name, Place(path.name, start, end, DTYPES[one["dtype"]], tuple(one["shape"]))


def copy_adding(before: Path, additions: Iterable[tuple[str, Tensor]], directory: Path) -> None:
    """Copy a checkpoint's weights to `directory`, and add to each named one a tensor of its shape, in float32 or wider.

    What is kept in bfloat16 is rounded as `save_weights` does. The names are among those of `places_of`. Raises NotWritten.
    """
    places, generator = places_of(before), torch.Generator().manual_seed(ROUNDING_SEED)
    with durable.naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for file in (*before.glob("*.safetensors"), *before.glob("*.safetensors.index.json")):
            shutil.copyfile(file, directory / file.name)
        for name, added in additions:
            place = places[name]
            with open(directory / place.file, "r+b") as opened:
                _write(opened, place, _sum(_read(opened, place), added.cpu(), generator))


def _sum(weight: Tensor, added: Tensor, generator: torch.Generator) -> Tensor:
    precise = torch.promote_types(weight.dtype, torch.float32)
    return rounded(weight.to(precise) + added.to(precise), weight.dtype, generator)


def _read(file: BinaryIO, place: Place) -> Tensor:
    file.seek(place.start)
    return torch.frombuffer(bytearray(file.read(place.end - place.start)), dtype=place.dtype).reshape(place.shape)


def _write(file: BinaryIO, place: Place, tensor: Tensor) -> None:
    file.seek(place.start)
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
