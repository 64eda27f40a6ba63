"""One network's optimiser: AdamW, the learning rate of each step, clipping.

The learning rate is a function of the step, so there is no scheduler whose state could be lost.
"""

import math

import torch
from torch import Tensor, nn

from selfplay.distributed.sharding import whole
from selfplay.errors import Diverged


def learning_rate_factor(step: int, steps: int, schedule: str, warmup: float, start: float | None = None) -> float:
    """Factor on the base learning rate at `step` (from 0) of `steps`.

    It rises from `start` (None: one equal step above 0) to 1 over the first `warmup` share of the steps, then follows
    "constant", "linear" (1 at the start, 1/n at the last of n steps, as in TRL and N+) or "cosine". Raises ValueError for
    another name.
    """
    rising = round(warmup * steps)
    if step < rising:
        first = 1 / (rising + 1) if start is None else start
        return first + (1 - first) * step / rising
    done = (step - rising) / max(steps - rising, 1)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return (1.0 + math.cos(math.pi * done)) / 2
    raise ValueError(f"unknown schedule {schedule!r}: use linear, constant or cosine")


class Optimizer:
    """AdamW over the trainable parameters of a network, which may be spread over processes: so are its moments."""

    def __init__(
        self, network: nn.Module, learning_rate: float, epsilon: float, weight_decay: float, max_grad_norm: float
    ) -> None:
        self.parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self.adam = torch.optim.AdamW(
            self.parameters.values(), lr=learning_rate, eps=epsilon, weight_decay=weight_decay, fused=True
        )
        for parameter in self.parameters.values():  # as the first step would, so that a checkpoint finds its places
            self.adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        self.zero_grad()  # a model may come with gradients of whoever trained it before

    def set_factor(self, factor: float) -> float:
        """Scale the learning rate; gives the rate now in use."""
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * factor
        return self.learning_rate * factor

    def step(self) -> float:
        """Clip the gradients, apply and clear them; return their norm before clipping.

        Raises Diverged, with the weights as they were, if the gradient is not finite.
        """
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)))
        if not math.isfinite(norm):
            raise Diverged(
                f"the policy's training diverged: a gradient's length is {norm}. The last checkpoint is kept. Lower the learning "
                "rates, or with PPO set target_kl, and look at the losses and policy/approxkl_avg of the steps before"
            )
        self.adam.step()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return Adam's moments and counts of each parameter, by name: the tensors themselves, no copies."""
        return {name: dict(self.adam.state[parameter]) for name, parameter in self.parameters.items()}


class Average:
    """Exponential moving average of the parameters that a network trains, which begins as a copy of them.

    It is kept in float32 at least. No correction for its beginning: with decay d, the start counts d^n after n updates.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self.tensors = {
            name: one.detach().to(torch.promote_types(one.dtype, torch.float32), copy=True)
            for name, one in self.parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters: d average + (1 - d) parameter."""
        for name, average in self.tensors.items():
            average.mul_(self.decay).add_(self.parameters[name].detach(), alpha=1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the parameters to their average."""
        for name, average in self.tensors.items():
            self.parameters[name].copy_(average)
