"""Groups of completions that straddle processes learn what one process does; one that is killed loses nothing but time."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import CONTEXT, in_processes
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


def train_to_the_end(seed: int, knobs: dict[str, Any], folder: Path) -> None:
    """Train in a folder, from its checkpoint if there is one, and write the weights behind it."""
    torch.set_num_threads(1)
    config = PPO(steps=10, episodes=12, group=4, minibatches=2, checkpoint_every=1, learning_rate=1e-2, **knobs)
    reward, sampling = FunctionReward(some_fives), SamplingParams(max_tokens=6)
    policy = build_policy(seed, torch.float32)
    trainer = PPOTrainer(policy, build_tokenizer(), reward, build_prompts(), config, sampling, directory=folder)
    trainer.train()
    torch.save(trainer.policy.state_dict(), folder / "weights.pt")


@pytest.mark.parametrize("knobs", [{"advantage": "rloo"}, {"advantage": "grpo", "resample": 2, "kl_coefficient": 0.0}])
def test_sigkill_loses_nothing_but_time(tmp_path: Path, training_seed: int, knobs: dict[str, Any]) -> None:
    def start(name: str) -> Any:
        process = CONTEXT.Process(target=train_to_the_end, args=(training_seed, knobs, tmp_path / name))
        process.start()
        return process

    whole, cut = start("whole"), start("cut")
    metrics, deadline = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 3):
        time.sleep(0.002)
    os.kill(cut.pid, signal.SIGKILL)
    cut.join(60)
    again = start("cut")
    for process in (whole, again):
        process.join(150)
    assert (cut.exitcode, whole.exitcode, again.exitcode) == (-signal.SIGKILL, 0, 0)
    expected, found = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "cut"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
