"""PPO's losses, token by token: every function takes tensors of one shape and gives the loss of each token.

Nothing is averaged here: the caller sums over real tokens, each with its share of the whole minibatch's loss, so that
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
    log_ratios: Tensor,
    advantages: Tensor,
    clip: float,
    dual_clip: float | None = None,
    clip_high: float | None = None,
) -> PolicyLoss:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)) (Schulman et al. 2017, equation 7).

    `log_ratios` are new less old log-probs, clamped to +-20 against overflow. `clip_high` None means `clip` (DAPO has
    another, Yu et al. 2025, equation 10). With `dual_clip` c > 1 the loss is at most -A c where A < 0 (Ye et al. 2020,
    equation 5).
    """
    ratio = torch.exp(log_ratios.clamp(-20, 20))
    high = clip if clip_high is None else clip_high
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + high)
    loss = torch.maximum(plain, bounded)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return PolicyLoss(loss, ratio.detach(), (bounded > plain).detach())


def pool_log_ratios(log_ratios: Tensor, responses: Tensor, how: str) -> Tensor:
    """Log-ratios (N,) of tokens as those that are clipped, (N,); `responses` (N,) numbers the response of each token.

    "token": as they are. "sequence": their mean over the response (GSPO, Zheng et al. 2025, equation 7). "product": their
    sum, the response as one action (RLOO, Ahmadian et al. 2024). Raises ValueError for another `how`.
    """
    if how == "token":
        return log_ratios
    if how not in ("sequence", "product"):
        raise ValueError(f"unknown ratio {how!r}: use token, sequence or product")
    count = int(responses.max()) + 1 if len(responses) else 0
    sums = log_ratios.new_zeros(count).index_add(0, responses, log_ratios)
    if how == "sequence":
        sums = sums / torch.bincount(responses, minlength=count).clamp(min=1)
    return sums[responses]


def loss_shares(how: str, lengths: Tensor, tokens: int, responses: int, max_tokens: int) -> Tensor:
    """(N,) float64: what each token's loss counts in the loss of a minibatch of so many `tokens` and `responses`.

    `lengths` (N,) are the tokens of the response that each token belongs to. "token": 1 / tokens (DAPO, Yu et al. 2025,
    equation 12). "sequence": 1 / (length x responses) (GRPO, Shao et al. 2024, equation 3). "constant": 1 / (responses x
    max_tokens) (Dr. GRPO, Liu et al. 2025). Raises ValueError for another `how`.
    """
    if how == "token":
        return torch.full_like(lengths, 1 / tokens, dtype=torch.float64)
    if how == "sequence":
        return 1 / (lengths.double() * responses)
    if how == "constant":
        return torch.full_like(lengths, 1 / (responses * max_tokens), dtype=torch.float64)
    raise ValueError(f"unknown average {how!r}: use token, sequence or constant")


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
