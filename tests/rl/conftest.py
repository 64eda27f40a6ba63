"""Fixtures of the PPO tests; what they hold is made in tiny_models.py."""

import functools

import pytest
from tiny_models import PolicyMaker, build_policy, build_prompts, build_tokenizer
from transformers import PreTrainedTokenizerFast

from selfplay.records import Prompt


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
