"""One network's optimiser: AdamW, the learning rate of each step, clipping, gradients summed over processes.

The learning rate is a function of the step, so there is no scheduler whose state could be lost.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from selfplay.distributed.collectives import all_reduce, world_size
from selfplay.errors import Diverged


def learning_rate_factor(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Factor on the base learning rate at `step` (from 0) of `steps`.

    It rises to 1 over the first `warmup` share of the steps, then follows "constant", "linear" (1 at the start, 1/n at
    the last of n steps, as in TRL and N+) or "cosine". Raises ValueError for another name.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(steps - rising, 1)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return (1.0 + math.cos(math.pi * done)) / 2
    raise ValueError(f"unknown schedule {schedule!r}: use linear, constant or cosine")


class Optimizer:
    """AdamW over the trainable parameters of a module."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        epsilon: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self.adam = torch.optim.AdamW(
            self.parameters, lr=learning_rate, eps=epsilon, weight_decay=weight_decay, fused=True
        )
        self.zero_grad()  # a model may come with gradients of whoever trained it before

    def set_factor(self, factor: float) -> float:
        """Scale the learning rate; gives the rate now in use."""
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * factor
        return self.learning_rate * factor

    def step(self) -> float:
        """Sum the gradients over all processes, clip, apply and clear them; return their norm before clipping.

        Raises Diverged, with the weights as they were, if the gradient is not finite.
        """
        if world_size() > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            all_reduce(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not math.isfinite(norm):
            raise Diverged(
                f"PPO diverged: a gradient's length is {norm}. The last checkpoint is kept. Lower the learning rates "
                "or set target_kl, and look at policy/approxkl_avg and loss/value_avg of the steps before"
            )
        self.adam.step()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and counts."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.adam.load_state_dict(state)
