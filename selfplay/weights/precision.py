"""Which precision matrix products run in: bfloat16 where this machine is faster with it, chosen once for a run and kept.

Weights, sums and losses stay float32, and on a CPU so does attention, whose backward pass is slower in bfloat16. The choice lies
in the run's precision.json, so that a run that is resumed on another processor takes the identical next step. Left out: float16.
"""

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from selfplay.storage.checksums import write_sealed
from selfplay.weights.attention import FLOAT32_ATTENTION, float32_attention
from selfplay.weights.kept_precision import SMALLEST_FOR_BFLOAT16, kept_products
from selfplay.weights.release import release_memory

WORTHWHILE = 1.2
"""Times that products must be faster in bfloat16."""
_kept: ContextVar[Path | None] = ContextVar("kept", default=None)


@contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Keep this process's choice in a file, or follow the one that is there."""
    token = _kept.set(path)
    try:
        yield
    finally:
        _kept.reset(token)


def preferred(model: nn.Module) -> str:
    """Return the precision, "float32" or "bfloat16", in which a model's products are to run."""
    if sum(parameter.numel() for parameter in model.parameters()) < SMALLEST_FOR_BFLOAT16:
        return "float32"
    path = _kept.get()
    if path is None:
        return str(measured()["products"])
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            write_sealed(path, measured())
        return kept_products(path)


@cache
def measured() -> dict[str, Any]:
    """Return which precision is faster here, and how long products took in each, in milliseconds; on a GPU, what it supports."""
    if torch.cuda.is_available():
        return {"products": "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"}
    layer, rows = nn.Linear(576, 1536, bias=False), torch.randn(512, 576, requires_grad=True)

    def seconds(name: str) -> float:
        begun = perf_counter()
        for _ in range(3):
            with products_in(name, rows.device):
                layer(rows).float().sum().backward()
        return perf_counter() - begun

    rounds = [(seconds("float32"), seconds("bfloat16")) for _ in range(8)][1:]  # the first makes the kernels
    return decide(*(statistics.median(times) * 1000 / 3 for times in zip(*rounds, strict=True)))


def decide(float32: float, bfloat16: float) -> dict[str, Any]:
    """Return the choice that two times lead to, with the times."""
    products = "bfloat16" if float32 > WORTHWHILE * bfloat16 else "float32"
    return {"products": products, "float32_ms": round(float32, 3), "bfloat16_ms": round(bfloat16, 3)}


def products_in(name: str, where: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products run in a precision: autocast to bfloat16, or nothing."""
    return torch.autocast(where.type, torch.bfloat16) if name == "bfloat16" else nullcontext()


def keep_attention_precise(model: Any) -> Any:
    """Return a model on a CPU with its attention in float32, also under autocast; one with other attention as it is."""
    if model.device.type == "cpu" and model.dtype == torch.float32 and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(FLOAT32_ATTENTION, float32_attention)
        AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)
        model.set_attn_implementation(FLOAT32_ATTENTION)
    return model


def freeze(model: Any, name: str) -> Any:
    """Return a model that learns no more; its linear layers' weights in bfloat16 if its products run in it: half the memory."""
    model.requires_grad_(False)
    return halve_frozen(model, name)


def halve_frozen(model: Any, name: str) -> Any:
    """Return a model with the weights of its linear layers that learn no more in bfloat16, if its products run in it.

    The products are the same to the last bit, since autocast rounds the weights likewise. The output embedding stays as it is:
    log-probs are made from it in float32.
    """
    if name == "bfloat16":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        halved = {
            id(layer.weight)
            for layer in model.modules()
            if isinstance(layer, nn.Linear) and layer is not head and layer.out_features > 1
        }
        for weight in model.parameters():  # all: one alone that lies in the checkpoint's file would keep all of it
            if not weight.requires_grad:
                weight.data = weight.data.to(torch.bfloat16) if id(weight) in halved else weight.data.clone()
        release_memory()
    return model
