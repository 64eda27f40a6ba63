"""Run directories for the tests of report, guard and export; the finished one is made once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from making_runs import Plan, make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run of two iterations on 256 held-out prompts, the second better than the first."""
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart", Plan())
