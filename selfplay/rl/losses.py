"""PPO's losses, token by token: every function takes tensors of one shape (any) and gives the loss of each token.

Nothing is averaged here: the caller sums over real tokens and divides by their count in the whole minibatch, so that
gradients do not depend on how a minibatch is split into micro-batches or over processes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """Per token: the `loss` (with gradient), the probability `ratio` new / old, and whether the clip was `clipped` in.

    `ratio` and `clipped` are detached.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float, dual_clip: float | None = None
) -> PolicyLoss:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) (Schulman et al. 2017, equation 7).

    The log-ratio is clamped to +-20 against overflow. With `dual_clip` c > 1 the loss is at most -A c where A < 0 (Ye
    et al. 2020, equation 5).
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, bounded)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return PolicyLoss(loss, ratio.detach(), (bounded > plain).detach())


@dataclass(frozen=True)
class ValueLoss:
    """Per token: the `loss` (with gradient), and whether the clipped value gave it (`clipped`, detached)."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> ValueLoss:
    """1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), the unclipped half square if `clip` is None.

    Source: Ziegler et al. 2019, code; OpenAI Baselines `ppo2`.
    """
    plain = (values - returns).square()
    if clip is None:
        return ValueLoss(plain / 2, torch.zeros_like(plain, dtype=torch.bool))
    bounded = (torch.clamp(values, old_values - clip, old_values + clip) - returns).square()
    return ValueLoss(torch.maximum(plain, bounded) / 2, (bounded > plain).detach())


def importance_weights(
    old_logprobs: Tensor, engine_logprobs: Tensor, cap: float | None, bound: float | None = None
) -> Tensor:
    """Detached weights min(p_old / p_engine, cap) for tokens that the engine sampled; 1 where `cap` is None.

    Tokens whose ratio lies outside [1 / bound, bound] get weight 0. Sources: truncated importance sampling, Ionides
    2008, for this gap Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training");
    masking: IcePop 2025.
    """
    ratio = torch.exp((old_logprobs - engine_logprobs).detach().clamp(-20, 20))
    weights = torch.ones_like(ratio) if cap is None else ratio.clamp(max=cap)
    if bound is not None:
        weights = torch.where((ratio >= 1 / bound) & (ratio <= bound), weights, 0.0)
    return weights
