"""Groups of completions that straddle processes: the baselines, the resampling and the weights are those of one process."""

from pathlib import Path
from typing import Any

import torch
from processes import in_processes
from tiny_models import build_policy, build_prompts, build_tokenizer, rollout

from selfplay.config import PPO, SamplingParams
from selfplay.distributed.sharding import whole
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer

KNOBS: list[dict[str, Any]] = [
    {"advantage": "rloo", "ratio": "product", "ema": 0.6},
    {"advantage": "grpo", "loss_average": "sequence", "ratio": "sequence", "resample": 2, "clip": 0.01},
]
"""With groups of five, each of two processes samples two or three of a prompt's completions."""


def some_fives(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """Scores of 0 and 1, and none for some lengths: groups with holes and groups without signal."""
    return [float("nan") if len(one) % 5 == 4 else float("5" in one.split()) for one in responses]


def train(seed: int) -> list[dict[str, Any]]:
    """What this process finds with each of the settings."""
    found = []
    for knobs in KNOBS:
        rows: list[dict[str, Any]] = []
        trainer = PPOTrainer(
            build_policy(seed),
            build_tokenizer(),
            FunctionReward(some_fives),
            build_prompts(),
            PPO(steps=2, episodes=15, group=5, minibatches=3, learning_rate=1e-2, **knobs),
            SamplingParams(max_tokens=7),
            on_step=rows.append,
        )
        _, _, experience = rollout(trainer)
        trainer.train()
        weights = [whole(p.detach()) for p in trainer.policy.parameters()]
        found.append({"advantages": experience.advantages, "rows": rows, "weights": weights})
    return found


def test_groups_that_straddle_two_processes_are_the_same(tmp_path: Path, training_seed: int) -> None:
    (alone,) = in_processes(1, train, tmp_path / "one", training_seed)
    for one in in_processes(2, train, tmp_path / "two", training_seed):
        for mine, theirs in zip(one, alone, strict=True):
            torch.testing.assert_close(mine["advantages"], theirs["advantages"], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-9, atol=1e-9)
    assert sum(row["group/resampled"] for row in alone[1]["rows"]) > 0
    assert sum(row["objective/unscored"] for row in alone[0]["rows"]) > 0
