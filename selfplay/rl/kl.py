"""How far the policy has moved from its reference: estimators of the KL, the KL in the reward, and its coefficient's controller.

Where `kl_in` is loss, it enters in `learner` instead. Left out: the exact KL over the vocabulary, which would need both
distributions of every token at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, same shape as the inputs.

    With d = logprobs - reference_logprobs of tokens that the policy sampled: "k1" is d (unbiased, may be negative),
    "k2" is d^2 / 2 (its gradient is that of the KL), "k3" is exp(-d) - 1 + d (unbiased, never negative).
    Source: Schulman 2020, "Approximating KL divergence". Raises ValueError for another name.
    """
    difference = logprobs - reference_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.expm1(-difference.clamp(-20, 20)) + difference
    raise ValueError(f"unknown KL estimator {estimator!r}: use one of {', '.join(ESTIMATORS)}")


def token_rewards(scores: Tensor, kl: Tensor, coefficient: float, mask: Tensor) -> Tensor:
    """(B, T) rewards: -coefficient * kl on every token, and the score (B,) once, on the last true place of each row.

    A row without tokens gets no score. Source: Ziegler et al. 2019, equation 2.
    """
    rewards = -coefficient * kl * mask
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last = torch.where(mask.bool(), places, -1).amax(dim=1)
    rows = (last >= 0).nonzero().squeeze(-1)
    rewards[rows, last[rows]] += scores[rows].to(rewards.dtype)
    return rewards


@dataclass
class KLController:
    """The coefficient beta, fixed (`target` None) or steered to a target (Ziegler et al. 2019, section 2.2).

    `target` in nats per response, `horizon` in episodes. `coefficient` is the only state, and goes into checkpoints.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10000.0

    def update(self, kl: float, episodes: int) -> None:
        """Steer by the mean over `episodes` of their summed KL: beta *= 1 + clip(KL/target - 1, +-0.2) n/H."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * episodes / self.horizon
