"""Data parallelism in a few lines, under torchrun with gloo (CPU) or nccl (GPU); a single process needs none of it.

Every process holds all weights and, once sampled, all episodes; only the forward and backward passes are divided. So
all maths on episodes is the same everywhere, and results do not depend on the number of processes (up to rounding).
Left out: sharded weights.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfplay.models import device

T = TypeVar("T")
BUCKET_ELEMENTS = 2**25


def init_process_group() -> None:
    """Join the process group if torchrun started this process and it is not done yet; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


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
