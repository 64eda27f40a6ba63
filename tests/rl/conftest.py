"""Fixtures of the PPO tests; what they hold is made in tiny_models.py."""

import functools
from typing import Any

import pytest
from tiny_models import SAMPLING, Maker, PolicyMaker, build_policy, build_prompts, build_tokenizer, count_of_fives
from transformers import PreTrainedTokenizerFast

from selfplay.config import PPO
from selfplay.records import Prompt
from selfplay.rewards.sources import FunctionReward
from selfplay.rl import PPOTrainer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of sixteen words."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_policy(training_seed: int) -> PolicyMaker:
    """A new, random policy of the test's seed: `make_policy(seed=..., dtype=torch.float64, **config)`."""
    return functools.partial(build_policy, seed=training_seed)


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Twelve prompts of one to four words."""
    return build_prompts()


@pytest.fixture
def make_trainer(make_policy: PolicyMaker, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]) -> Maker:
    """`make_trainer(steps=..., policy=..., directory=..., on_step=...)`: knobs of PPO and arguments of the trainer."""

    def make(**changes: Any) -> PPOTrainer:
        arguments = {
            name: changes.pop(name)
            for name in ("critic", "reference", "directory", "on_step", "engine", "corpus", "seed", "half_base")
            if name in changes
        }
        policy = changes.pop("policy", None) or make_policy()
        reward = changes.pop("reward", FunctionReward(count_of_fives))
        sampling = changes.pop("sampling", SAMPLING)
        config = PPO(**{"steps": 2, "episodes": 12, "minibatches": 3, "learning_rate": 1e-2, **changes})
        return PPOTrainer(policy, tokenizer, reward, prompts, config, sampling, **arguments)

    return make
