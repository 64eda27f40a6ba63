"""What processes say to each other, under torchrun or Ray Train, with gloo (CPU) and nccl (GPU); one alone needs none of it.

Every process holds, once sampled, all episodes; only the forward and backward passes are divided. So all maths on
episodes is the same everywhere, and results do not depend on the number of processes (up to rounding). Left out: weights
that are spread over the processes (`selfplay.distributed.sharding`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfplay.distributed.cluster import started_by_launcher
from selfplay.errors import as_told
from selfplay.models import device

T = TypeVar("T")
BUCKET_ELEMENTS = 2**25
BACKEND = "cpu:gloo,cuda:nccl"
"""Tensors on GPUs go over nccl, those on the CPU and Python objects over gloo."""
PATIENCE = timedelta(hours=2)
"""After which a process that waits for another gives up: one may be asking a judge while the others wait."""


def init_process_group() -> None:
    """Join the process group if torchrun started this process and it is not done yet; else do nothing."""
    if started_by_launcher() and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        dist.init_process_group(BACKEND if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def from_first(make: Callable[[], T]) -> T:
    """Return on every process what the first one makes; the others do not call `make`. Raises on all what it raises."""
    if world_size() == 1:
        return make()
    items: list[Any] = [None, None]
    try:
        items[0] = make() if rank() == 0 else None
    except BaseException as error:
        _tell(error)
        raise
    dist.broadcast_object_list(items, 0)
    _raise_told(items[1])
    found: T = items[0]
    return found


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the others into the block once the first process has left it: they find what it wrote or cached.

    Raises on the others what it raises in the block, before they enter it.
    """
    if rank() > 0:
        from_first(lambda: None)
        yield
        return
    try:
        yield
    except BaseException as error:
        _tell(error)
        raise
    from_first(lambda: None)


def _tell(error: BaseException) -> None:
    """Tell the others, who wait in `from_first`, of an error of the first process: they would wait for hours."""
    if world_size() > 1:
        told = (type(error).__name__, str(error), getattr(error, "exit_code", None))
        dist.broadcast_object_list([None, told], 0)


def _raise_told(told: tuple[str, str, int | None] | None) -> None:
    """Raise the error that the first process told of, if it did."""
    if told is not None:
        kind, message, code = told
        if code is not None:
            raise as_told(kind, message, code)
        raise RuntimeError(f"the first process failed with {kind}: {message}")


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by the first process's, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def all_gather(item: T) -> list[T]:
    """Return every process's item, in the order of their ranks, on every process."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def all_reduce(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place, in buckets of one device and type."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or sum(t.numel() for t in bucket) > BUCKET_ELEMENTS):
            _sum_bucket(bucket)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.all_reduce(flat)
    for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(summed.view_as(tensor))
