"""A run to write into, for the tests of stages."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A run of our own to write into, with two iterations that are done."""
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"
