"""RLOO, GRPO with resampling, and an average of the weights: the same weights after a kill as without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Maker, PolicyMaker

from selfplay.config import Pretraining
from selfplay.rewards.sources import FunctionReward

KNOBS: dict[str, dict[str, Any]] = {
    "rloo": {"advantage": "rloo", "normalise_scores": "standardise", "ratio": "product"},
    "grpo": {
        "advantage": "grpo",
        "loss_average": "sequence",
        "kl_in": "loss",
        "kl_estimator": "k3",
        "resample": 3,
        "overlong_buffer": 3,
    },
    "reinforce++ ahead": {"advantage": "reinforce++", "async_rollouts": True},
    "instructgpt": {"ema": 0.7, "warmup": 0.5, "warmup_start": 0.1, "pretraining": Pretraining(per_episode=1.5)},
}


class Killed(Exception):
    """Stands for the kill."""


def some_fives(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """Scores of few values, so that some groups have no signal."""
    return [float("5" in response.split()) for response in responses]


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.policy.parameters()]


@pytest.mark.parametrize("name", KNOBS)
def test_killed_and_resumed_is_bitwise_the_same(
    make_trainer: Maker, make_policy: PolicyMaker, tmp_path: Path, name: str
) -> None:
    knobs = KNOBS[name] if name == "instructgpt" else {"group": 4, **KNOBS[name]}

    def build(folder: str) -> Any:
        return make_trainer(
            policy=make_policy(dtype=torch.float32),
            directory=tmp_path / folder,
            reward=FunctionReward(some_fives),
            steps=5,
            checkpoint_every=2,
            corpus=["1 2 3", "4 5 6 7"],
            seed=3,
            **knobs,
        )

    whole, cut = build("whole"), build("cut")
    whole.train()
    calls, gradients = 0, cut.learner.gradients

    def kill(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2 * 6 + 2:  # within step 3, of two epochs of three minibatches
            raise Killed
        return gradients(*arguments, **named)

    cut.learner.gradients = kill
    with pytest.raises(Killed):
        cut.train()
    resumed = build("cut")
    resumed.train()
    assert resumed.steps_done == 5
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    again = build("cut")
    again.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
