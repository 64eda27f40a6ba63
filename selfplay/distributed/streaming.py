"""A model whose weights stay in the machine's memory, in their own precision, and come to the GPU a block at a time.

For passes without gradients over models that no card holds. Each pass moves all weights once: few and large batches. Left out:
fetching a block while the one before computes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from selfplay.distributed.sharding import blocks


@torch.no_grad()
def stream_blocks(model: Any, where: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model on the CPU, changed so that it computes on `where` in `dtype`; what is outside of its blocks moves there."""
    layers = blocks(model)
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for here in (module._parameters, module._buffers):
                for tensor in (one for one in here.values() if one is not None):
                    tensor.data = _moved(tensor, where, dtype)
    for layer in layers:
        held = [(tensor, tensor.data) for tensor in (*layer.parameters(), *layer.buffers())]
        layer.register_forward_pre_hook(_fetches(held, where, dtype))
        layer.register_forward_hook(_releases(held))
    return model


def _moved(tensor: Tensor, where: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.data.to(where, dtype if tensor.is_floating_point() else tensor.dtype)


def _fetches(held: list[tuple[Tensor, Tensor]], where: torch.device, dtype: torch.dtype) -> Any:
    def fetch(module: nn.Module, inputs: Any) -> None:
        for tensor, own in held:
            tensor.data = _moved(own, where, dtype)

    return fetch


def _releases(held: list[tuple[Tensor, Tensor]]) -> Any:
    def release(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor, own in held:
            tensor.data = own

    return release
