"""bfloat16 copies of float32 weights to compute with: what autocast does at every layer and pass is done once a step.

    half = HalfWeights(network)
    with half.in_use():                      # the network's modules hold the copies
        network(batch).sum().backward()      # gradients arrive, in float32, in the network's own weights
        optimizer.step(); half.refresh()

If all weights are copied, everything between the products (the residual stream, norms, gates) is bfloat16 as well, half the bytes
that autocast moves; sums inside a norm and a softmax stay float32, as the models' own code has it. This is mixed precision with
master weights (Micikevicius et al. 2018, 1710.03740), and what FSDP2 does above one process. Left out: float16, which needs
loss scaling.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def prefers_half_weights(where: torch.device) -> bool:
    """Return whether a network that learns there computes faster with weights in bfloat16 than under autocast.

    On a CPU it does not: attention is faster in float32 there.
    """
    return where.type == "cuda"


PRODUCTS = (nn.Linear, Conv1D)
"""Modules whose weights autocast rounds for every product."""


class HalfWeights:
    """A bfloat16 copy of each float32 weight of a network, ties kept; those of modules in `apart` stay as they are, and so do
    those that transformers leaves in float32 in a bfloat16 model. `kinds` are the modules that get copies, by default all.

    Outside `in_use` the network holds its own weights, so that whoever saves, averages or hashes them sees these alone.
    """

    def __init__(
        self, network: nn.Module, apart: Sequence[nn.Module] = (), kinds: tuple[type[nn.Module], ...] = (nn.Module,)
    ) -> None:
        left_out = {id(weight) for module in apart for weight in module.parameters()} | _kept_precise(network)
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        for module in (one for one in network.modules() if isinstance(one, kinds)):
            for name, weight in module._parameters.items():
                if weight is not None and weight.dtype == torch.float32 and id(weight) not in left_out:
                    self._places.append((module, name, weight))
                    if weight not in self._copies:
                        self._copies[weight] = _copy(weight)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the network's weights that learn: an optimizer has changed them."""
        changing = {weight: copy for weight, copy in self._copies.items() if copy.requires_grad}
        if changing:
            torch._foreach_copy_([one.data for one in changing.values()], [one.data for one in changing])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the network compute with fresh copies of what learns; leave it with its own weights."""
        self.refresh()
        for module, name, weight in self._places:
            module._parameters[name] = self._copies[weight]
        try:
            yield
        finally:
            for module, name, weight in self._places:
                module._parameters[name] = weight


def _copy(weight: nn.Parameter) -> nn.Parameter:
    """Return a bfloat16 copy whose gradient, once a backward pass has made it, is added to the weight's own.

    Of a weight that learns it is empty, until it is refreshed to be used.
    """
    learns, own = weight.requires_grad, weight.detach()
    rounded = torch.empty_like(own, dtype=torch.bfloat16) if learns else own.to(torch.bfloat16)
    copy = nn.Parameter(rounded, requires_grad=learns)

    def hand_over(made: Tensor) -> None:
        assert made.grad is not None
        if weight.grad is None:
            weight.grad = made.grad.to(weight.dtype)
        else:
            weight.grad += made.grad
        made.grad = None

    if weight.requires_grad:
        copy.register_post_accumulate_grad_hook(hand_over)
    return copy


def _kept_precise(network: nn.Module) -> set[int]:
    """Return the weights that transformers itself leaves in float32 in a bfloat16 model, such as a router's."""
    return {
        id(weight)
        for model in network.modules()
        if (names := getattr(model, "_keep_in_fp32_modules_strict", None))
        for name, weight in model.named_parameters()
        if any(part in name for part in names)
    }


@torch.no_grad()
def to_half(network: nn.Module) -> None:
    """Make the float32 weights of a network that learns no more bfloat16, in place; buffers (rotary frequencies) stay."""
    kept = _kept_precise(network)
    for weight in network.parameters():
        if weight.dtype == torch.float32 and id(weight) not in kept:
            weight.data = weight.data.to(torch.bfloat16)
