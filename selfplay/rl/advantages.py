"""From scores and values to advantages: groups, generalised advantage estimation, whitening, moments.

Shapes: B sequences, T response tokens. A mask (B, T) is true on real tokens. Left out: anything about models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the true places of `mask` (same shape); 0 if there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the true places of `mask`; 0 if there are fewer than two."""
    squares = ((values - masked_mean(values, mask)).square() * mask).sum()
    return squares / (mask.sum() - 1).clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Values of variance 1 and, if `shift_mean`, mean 0 over the mask (otherwise the mean stays); 0 off the mask.

    Source: Ziegler et al. 2019, code (`utils/core.py: whiten`); N+ implementation details 2024.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + epsilon)
    return (whitened if shift_mean else whitened + mean) * mask


def penalise_missing_end(scores: Tensor, truncated: Tensor, penalty: float, how: str) -> Tensor:
    """Scores (B,); those of `truncated` ones (B,) lowered by `penalty` ("subtract") or set to -penalty ("replace").

    Sources: TRL PPO (`missing_eos_penalty`) and N+ details 2024 ("EOS trick"). Raises ValueError for another `how`.
    """
    if how == "subtract":
        return torch.where(truncated, scores - penalty, scores)
    if how == "replace":
        return torch.where(truncated, torch.full_like(scores, -penalty), scores)
    raise ValueError(f"unknown way to penalise a missing end {how!r}: use subtract or replace")


def penalise_overlong(scores: Tensor, lengths: Tensor, max_tokens: int, buffer: int, penalty: float) -> Tensor:
    """Scores (B,) less `penalty` x how far lengths (B,), in tokens, reach into the last `buffer` before `max_tokens`.

    Nothing up to max_tokens - buffer, then linear, all of it at max_tokens. Source: DAPO (Yu et al. 2025), equation 13.
    """
    return scores - penalty * ((lengths - (max_tokens - buffer)).to(scores.dtype) / buffer).clamp(0, 1)


@dataclass(frozen=True)
class Groups:
    """The completions of G prompts: `member` (G, B) is 1 in float64 where a row answers the prompt; `counts` (G,)."""

    member: Tensor
    counts: Tensor

    @classmethod
    def of(cls, prompts: Tensor) -> "Groups":
        """Return the groups of rows (B,) that bear the number of their prompt."""
        member = (prompts == prompts.unique()[:, None]).double()
        return cls(member, member.sum(1))

    def means(self, scores: Tensor) -> Tensor:
        """(G,) float64 mean of the scores (B,) of each group."""
        return self.member @ scores.double() / self.counts

    def deviations(self, scores: Tensor) -> Tensor:
        """(G,) float64 unbiased standard deviation of the scores (B,) of each group; 0 for a group of one."""
        squares = (scores.double() - self.spread(self.means(scores))).square()
        return (self.member @ squares / (self.counts - 1).clamp(min=1)).sqrt()

    def equal(self, scores: Tensor) -> Tensor:
        """(G,) true where all scores (B,) of a group are the same: nothing can be learned from comparing them."""
        rows = self.member.bool()
        return torch.where(rows, scores, -torch.inf).amax(1) == torch.where(rows, scores, torch.inf).amin(1)

    def spread(self, values: Tensor) -> Tensor:
        """(B,) each group's value (G,), given to its rows."""
        return values @ self.member


def compare_in_groups(
    scores: Tensor, prompts: Tensor, baseline: str, divide: bool = False, epsilon: float = 1e-4
) -> Tensor:
    """Scores (B,) less a baseline from the completions of the same prompt; `prompts` (B,) numbers it.

    "mean": the mean of them all (GRPO, Shao et al. 2024; REINFORCE++ with baseline, Hu et al. 2025); "others": the mean of
    the others, n / (n - 1) times as much (RLOO, Kool et al. 2019). With `divide`, over their unbiased deviation + `epsilon`
    (GRPO; TRL has the same epsilon). A completion without another one to its prompt gets 0. Raises ValueError for another
    `baseline`.
    """
    if baseline not in ("mean", "others"):
        raise ValueError(f"unknown baseline {baseline!r}: use mean or others")
    groups = Groups.of(prompts)
    compared = scores.double() - groups.spread(groups.means(scores))
    if baseline == "others":
        compared = compared * groups.spread(groups.counts / (groups.counts - 1).clamp(min=1))
    if divide:
        compared = compared / (groups.spread(groups.deviations(scores)) + epsilon)
    return torch.where(groups.spread(groups.counts) > 1, compared, 0.0).to(scores.dtype)


def advantages_and_returns(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    discount: float,
    gae_lambda: float,
    final_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016): (B, T) advantages and returns, 0 off the mask.

    delta_t = r_t + discount V_{t+1} - V_t;  A_t = delta_t + discount lambda A_{t+1};  return = A + V.
    With values 0 and lambda 1 both are what REINFORCE takes, the discounted rewards from token t on.
    `values[:, t]` is the value of the state before token t. `final_values` (B,) is the value behind the last token,
    0 if None. Masked places between tokens are stepped over: V and A of the next token are carried across (verl).
    """
    rows, width = rewards.shape
    mask = mask.bool()
    next_value = rewards.new_zeros(rows) if final_values is None else final_values
    next_advantage = rewards.new_zeros(rows)
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(width)):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantage = delta + discount * gae_lambda * next_advantage
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
    return advantages, torch.where(mask, advantages + values, 0.0)


@dataclass
class RunningMoments:
    """Mean and variance of all numbers seen so far (Chan et al. 1983); goes into checkpoints."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: Tensor) -> None:
        """Take in the numbers of a tensor of any shape."""
        new, new_mean = values.numel(), float(values.double().mean())
        new_squares = float((values.double() - new_mean).square().sum())
        total, shift = self.count + new, new_mean - self.mean
        self.squares += new_squares + shift**2 * self.count * new / total
        self.mean += shift * new / total
        self.count = total

    @property
    def deviation(self) -> float:
        """Unbiased standard deviation; 1 before two numbers were seen, or if all were equal."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return variance**0.5 if variance > 0 else 1.0


def normalise_scores(scores: Tensor, moments: RunningMoments, how: str, clip: float | None) -> Tensor:
    """Scores (B,) divided by the running deviation ("scale"), also less the running mean ("standardise"), then clipped.

    The moments take these scores in first, as trlX's `RunningMoments` does. Raises ValueError for another `how`.
    """
    if how not in ("none", "scale", "standardise"):
        raise ValueError(f"unknown normalisation {how!r}: use none, scale or standardise")
    if how != "none" and scores.numel():
        moments.update(scores)
        scores = (scores - (moments.mean if how == "standardise" else 0.0)) / moments.deviation
    return scores if clip is None else scores.clamp(-clip, clip)
