"""What PPO learns from: scores and estimates made into advantages, returns and importance weights.

All tensors are (B, T): B episodes, T the longest response. Every process computes the same for all episodes, so
whitening is over all of them. Left out: anything that needs a network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfplay.config import PPO
from selfplay.rl.advantages import (
    RunningMoments,
    advantages_and_returns,
    compare_in_groups,
    normalise_scores,
    penalise_missing_end,
    penalise_overlong,
    whiten,
)
from selfplay.rl.kl import kl_estimate, token_rewards
from selfplay.rl.losses import importance_weights
from selfplay.rl.rollouts import Episodes, Estimates


@dataclass(frozen=True)
class Tokens:
    """The same for the N response tokens of a micro-batch, each (N,), and the number and length of each one's response."""

    responses: Tensor
    lengths: Tensor

    old_logprobs: Tensor
    reference_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Experience:
    """Targets of one step's update. `scores` (B,) are those that count, before any baseline; `weights` correct for the
    engine. Without a critic `old_values` are 0.
    """

    mask: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor
    scores: Tensor

    def tokens(self, at: tuple[Tensor, Tensor]) -> Tokens:
        """Return the response tokens in some places, such as a micro-batch's."""
        return Tokens(
            at[0],
            self.mask.sum(1)[at[0]],
            self.old_logprobs[at],
            self.reference_logprobs[at],
            self.old_values[at],
            self.advantages[at],
            self.returns[at],
            self.weights[at],
        )


def build_experience(
    episodes: Episodes,
    estimates: Estimates,
    config: PPO,
    coefficient: float,
    moments: RunningMoments,
    max_tokens: int,
) -> Experience:
    """Scores -> rewards -> advantages and returns. `coefficient` is beta; `moments` takes in the scores.

    The baseline of a group is one of scores; a KL in the reward comes behind it, on every token (OpenRLHF; TRL's
    RLOOTrainer takes beta x KL off the scores first).
    """
    mask = episodes.mask
    dtype = estimates.logprobs.dtype
    scores = normalise_scores(episodes.scores.to(dtype), moments, config.normalise_scores, config.score_clip)
    if config.overlong_buffer is None:
        scores = penalise_missing_end(scores, episodes.truncated, config.missing_eos_penalty, config.missing_eos)
    else:
        penalty = config.missing_eos_penalty
        scores = penalise_overlong(scores, episodes.response_lengths, max_tokens, config.overlong_buffer, penalty)
    kl = kl_estimate(estimates.whole_logprobs, estimates.reference_logprobs, config.kl_estimator)
    compared = _compared(scores, episodes.groups, config)
    rewards = token_rewards(compared, kl, coefficient if config.kl_in == "reward" else 0.0, mask)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    bootstrap = config.truncated_value == "bootstrap"
    final_values = estimates.final_values * episodes.truncated if bootstrap else None
    advantages, returns = advantages_and_returns(
        rewards,
        estimates.values,
        mask,
        config.discount,
        config.gae_lambda if config.has_critic else 1.0,
        final_values,
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    known = ~episodes.engine_logprobs.isnan() & mask
    engine_logprobs = torch.where(known, episodes.engine_logprobs.to(dtype), estimates.logprobs)
    weights = importance_weights(estimates.logprobs, engine_logprobs, config.importance_cap, config.importance_mask)
    return Experience(
        mask,
        estimates.logprobs,
        estimates.reference_logprobs,
        estimates.values,
        advantages,
        returns,
        weights * mask,
        scores,
    )


def _compared(scores: Tensor, prompts: Tensor, config: PPO) -> Tensor:
    """Scores (B,) less the baseline that the settings take from the other completions of each prompt, if any."""
    if config.advantage == "rloo":
        return compare_in_groups(scores, prompts, "others")
    if config.advantage == "grpo":
        return compare_in_groups(scores, prompts, "mean", divide=config.divide_by_deviation)
    if config.advantage == "reinforce++" and config.group_size > 1:
        return compare_in_groups(scores, prompts, "mean")
    return scores
