"""One network's optimiser: AdamW, the learning rate of each step, clipping.

The learning rate is a function of the step, so there is no scheduler whose state could be lost.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selfplay.distributed.collectives import all_gather, world_size
from selfplay.distributed.sharding import part, whole
from selfplay.errors import Diverged
from selfplay.weights.finite import unusable_weight

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET_ELEMENTS = 2**26
"""Parameters of which offloaded moments are on the GPU at once: half a gigabyte."""


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


def in_buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return parameters in portions of at most BUCKET_ELEMENTS numbers, in order; a larger one is a portion of its own."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room:
            buckets.append([])
            room = BUCKET_ELEMENTS
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return buckets


class Optimizer:
    """AdamW over the trainable parameters of a network, which may be spread over processes: so are its moments."""

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        epsilon: float,
        weight_decay: float,
        max_grad_norm: float,
        offload: bool = False,
    ) -> None:
        self.parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self.learning_rate, self.max_grad_norm, self.offload = learning_rate, max_grad_norm, offload
        buckets = in_buckets(self.parameters.values()) if offload else [list(self.parameters.values())]
        self.adams = [
            torch.optim.AdamW(bucket, lr=learning_rate, eps=epsilon, weight_decay=weight_decay, fused=True)
            for bucket in buckets
        ]
        for adam, bucket in zip(self.adams, buckets, strict=True):
            for parameter in bucket:  # as the first step would, so that a checkpoint finds its places
                adam.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": self._home(torch.zeros_like(parameter, memory_format=torch.preserve_format)),
                    "exp_avg_sq": self._home(torch.zeros_like(parameter, memory_format=torch.preserve_format)),
                }
        self.zero_grad()  # a model may come with gradients of whoever trained it before

    def set_factor(self, factor: float) -> float:
        """Scale the learning rate; gives the rate now in use."""
        for group in (group for adam in self.adams for group in adam.param_groups):
            group["lr"] = self.learning_rate * factor
        return self.learning_rate * factor

    def step(self) -> Tensor:
        """Clip the gradients, apply and clear them; return their norm () before clipping.

        One that is not finite leaves the weights as they were: `check_norm` is for the caller, who need not wait for a GPU before
        it has more to do. Above one process it is checked here.
        """
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm))
        if world_size() > 1:
            check_norm(float(norm))
        for adam in self.adams:
            if world_size() == 1:
                setattr(adam, "found_inf", (~norm.isfinite()).float())  # noqa: B010 - as torch.amp.GradScaler does
            self._step(adam)
        self.zero_grad()
        return norm

    def check_weights(self) -> None:
        """Raise Diverged, on every process, if a step left weights that no model computes with.

        Behind the last step nothing else tells.
        """
        found = unusable_weight(part(one) for one in self.parameters.values())
        bad = [value for value in all_gather(found) if value is not None]
        if bad:
            raise _diverged("a weight", bad[0])

    def _home(self, moment: Tensor) -> Tensor:
        """Return a moment where it stays between steps: with its parameter, or in the machine's memory."""
        return moment.to("cpu") if self.offload else moment

    def _step(self, adam: torch.optim.AdamW) -> None:
        """Take Adam's step; offloaded moments come to their parameters for it and go back into their places."""
        if not self.offload:
            adam.step()
            return
        kept = {parameter: dict(state) for parameter, state in adam.state.items()}
        for parameter, state in adam.state.items():
            for name in MOMENTS:
                state[name] = state[name].to(parameter.device, non_blocking=True)
        adam.step()
        for parameter, state in adam.state.items():
            for name in MOMENTS:
                state[name] = kept[parameter][name].copy_(state[name])

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for adam in self.adams:
            adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return Adam's moments and counts of each parameter, by name: the tensors themselves, no copies."""
        states = {parameter: state for adam in self.adams for parameter, state in adam.state.items()}
        return {name: dict(states[parameter]) for name, parameter in self.parameters.items()}


def check_norm(norm: float) -> float:
    """Return the norm of a gradient. Raises Diverged if it is not finite."""
    if not math.isfinite(norm):
        raise _diverged("a gradient's length", norm)
    return norm


def _diverged(name: str, value: float) -> Diverged:
    """Return the error that says what is not a usable number."""
    return Diverged(
        f"the policy's training diverged: {name} is {value}. The last checkpoint is kept. Lower the learning "
        "rates, or with PPO set target_kl, and look at the losses and policy/approxkl_avg of the steps before"
    )


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
