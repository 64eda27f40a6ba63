"""SIGTERM while workers of Ray are at it: the run says so, leaves nothing behind on the machine, and goes on exactly."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from killing import in_use, shared_memory
from machines import wait_for
from pooling import BATCHES, ROOT, begun, journal_lines, rows

from selfplay.config import load_recipe
from selfplay.loop import run, run_stage


@pytest.fixture
def tmpdir_of_driver() -> Iterator[Path]:
    """A folder for temporary files with a name so short that Ray's sockets fit in."""
    made = Path(tempfile.mkdtemp(prefix="t"))
    yield made
    shutil.rmtree(made)


def signalled(arguments: list[str], folder: Path, ready: Callable[[], bool]) -> tuple[int, str]:
    """Run `selfplay` until something is there, send SIGTERM, and return code and text.

    Fails if a process, a segment of shared memory or a file of its stays.
    """
    shared = shared_memory()
    driver = subprocess.Popen(
        [sys.executable, "-m", "selfplay", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for("work", lambda: driver.poll() is not None or ready())
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    said = driver.communicate(timeout=300)[1]
    assert not psutil.wait_procs(started, timeout=60)[1], "no process is left"
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100]
    assert left == [], "no file is left"
    assert shared_memory() - shared <= in_use(), "no shared memory is left"
    return driver.returncode, said


def test_a_sigterm_while_workers_generate(
    pooled_recipe: Path, pooled_alone: Path, tmp_path: Path, tmpdir_of_driver: Path
) -> None:
    directory = begun(pooled_recipe, tmp_path / "run", "launch.workers=2")
    asked = ["generate", str(directory), "-i", "1"]
    found, said = signalled(asked, tmpdir_of_driver, lambda: journal_lines(directory) >= 3)
    assert found == 75 and "give the same command again to go on" in said.splitlines()[-1], said
    assert "Traceback" not in said
    kept = journal_lines(directory)
    assert 3 <= kept < BATCHES
    run(load_recipe(pooled_recipe, [f"output={directory}"]), only_start=True)
    run_stage(directory, "generate", 1)
    assert rows(directory, "generate", "completions") == rows(pooled_alone, "generate", "completions")
