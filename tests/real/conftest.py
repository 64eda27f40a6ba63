"""What the tests beside a real model share: the model, and transformers 4."""

from pathlib import Path

import pytest
import smollm2 as real
from older import Older, open_older


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The checkpoint of a real chat model, SmolLM2-135M-Instruct in float32. Read it only: every checkout shares it."""
    return real.checkpoint()


@pytest.fixture(scope="session")
def older() -> Older:
    """transformers 4, to ask what it makes of a checkpoint."""
    return open_older()
