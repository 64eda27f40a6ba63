"""Every number that PPO logs, under TRL's name where TRL has one. docs/algorithms.md defines each, with its unit.

Averages are over real tokens or over episodes, never over padding.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfplay.config import PPO
from selfplay.rl.advantages import Groups, masked_mean
from selfplay.rl.experience import Experience, Tokens
from selfplay.rl.kl import kl_estimate
from selfplay.rl.losses import PolicyLoss
from selfplay.rl.rollouts import Episodes, Estimates

SUMS_OF_POLICY = (
    "tokens",
    "loss/policy",
    "policy/clipfrac",
    "policy/approxkl",
    "val/ratio",
    "policy/entropy",
)
SUMS_OF_CRITIC = ("loss/value", "val/clipfrac")


def policy_sums(tokens: Tokens, logprobs: Tensor, entropies: Tensor, policy: PolicyLoss) -> Tensor:
    """Return (6,) float64 sums over a micro-batch's tokens of what `SUMS_OF_POLICY` names."""
    apart = (logprobs - tokens.old_logprobs).square() / 2
    return total_of(torch.ones_like(logprobs), policy.loss, policy.clipped, apart, policy.ratio, entropies)


def total_of(*parts: Tensor) -> Tensor:
    """Return the sum of each part, in float64."""
    return torch.stack([part.detach().double().sum() for part in parts])


def read_numbers(rows: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
    """Return rows of single numbers as Python's, all read at once: a GPU is waited for one time."""
    tensors = [value.detach().double() for row in rows for value in row.values() if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return [{name: next(read) if isinstance(value, Tensor) else value for name, value in row.items()} for row in rows]


def update_metrics(minibatches: Sequence[dict[str, float]], steps: int) -> dict[str, float]:
    """Means over the minibatches of a step (TRL's `_avg`), and how the first one looked.

    `steps` of them were learnt from: all, or all but the last, at which `target_kl` ended the step.
    """

    def column(name: str) -> Tensor:
        return torch.tensor([row[name] for row in minibatches if name in row], dtype=torch.float64)

    first, ratios = minibatches[0], column("val/ratio")
    named = {f"{name}_avg": float(column(name).mean()) for name in minibatches[0] if name != "val/ratio"}
    return {
        **named,
        "val/ratio": float(ratios.mean()),
        "val/ratio_var": float(ratios.var()) if len(ratios) > 1 else 0.0,
        "policy/first_approxkl": first["policy/approxkl"],
        "policy/first_clipfrac": first["policy/clipfrac"],
        "val/first_ratio": first["val/ratio"],
        "policy/minibatches": steps,
    }


def rollout_metrics(
    episodes: Episodes, estimates: Estimates, experience: Experience, config: PPO, coefficient: float
) -> dict[str, float]:
    """Return what the episodes of a step were like; `coefficient` is the beta that was used on them."""
    mask, lengths = experience.mask, episodes.response_lengths.double()
    k1 = (estimates.whole_logprobs - estimates.reference_logprobs) * mask
    in_reward = coefficient if config.kl_in == "reward" else 0.0
    non_score = -in_reward * (
        kl_estimate(estimates.whole_logprobs, estimates.reference_logprobs, config.kl_estimator) * mask
    ).sum(1)
    known = ~episodes.engine_logprobs.isnan() & mask
    gap = torch.where(known, (estimates.logprobs - episodes.engine_logprobs).abs(), 0.0)
    values: dict[str, Tensor | float] = {
        "objective/kl": k1.sum(1).mean(),
        "objective/kl_per_token": masked_mean(k1, mask),
        "objective/kl_coefficient": coefficient,
        "objective/entropy": -(estimates.logprobs * mask).sum(1).mean(),
        "objective/non_score_reward": non_score.mean(),
        "objective/rlhf_reward": (non_score + experience.scores).mean(),
        "objective/scores": episodes.scores.mean(),
        "objective/scores_std": episodes.scores.std(unbiased=False),
        "val/num_eos_tokens": (~episodes.truncated).sum(),
        "response/length": lengths.mean(),
        "response/length_p95": lengths.quantile(0.95),
        "response/truncated": episodes.truncated.double().mean(),
        "response/tokens": lengths.sum(),
    }
    if known.any():
        values |= {
            "engine/logprob_gap": masked_mean(gap, known),
            "engine/logprob_gap_max": gap.max(),
            "engine/importance_weight": masked_mean(experience.weights, known),
            "engine/masked": masked_mean((experience.weights == 0).to(gap.dtype), known),
        }
    if config.has_critic:
        values["val/explained_variance"] = explained_variance(experience)
    if config.group_size > 1:
        groups = Groups.of(episodes.groups)
        values["group/scores_std"] = groups.deviations(episodes.scores).mean()
        values["group/without_signal"] = groups.equal(episodes.scores).double().mean()
    return read_numbers([values])[0]


def explained_variance(experience: Experience) -> Tensor:
    """Return the share of the returns' variance over tokens that the values explain."""
    mask, returns = experience.mask, experience.returns
    residual = returns - experience.old_values
    spread = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
    unexplained = masked_mean((residual - masked_mean(residual, mask)).square(), mask)
    return 1 - unexplained / spread.clamp(min=1e-12)


def samples(episodes: Episodes, estimates: Estimates, step: int, count: int) -> list[dict[str, Any]]:
    """Return the first `count` episodes as rows of text: prompt, response, score, KL (nats), tokens, why it ended."""
    kl = ((estimates.whole_logprobs - estimates.reference_logprobs) * episodes.mask).sum(1)
    rows = zip(episodes.prompts[:count], episodes.completions, episodes.scores.tolist(), kl.tolist(), strict=False)
    return [
        {
            "step": step,
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "response": completion.text,
            "score": value,
            "kl": divergence,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }
        for prompt, completion, value, divergence in rows
    ]


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a file of JSON lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
