"""A signal while workers of Ray are at it: the run says so, leaves nothing behind on the machine, and goes on exactly."""

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
import torch
from killing import in_use, shared_memory
from machines import wait_for
from pooling import BATCHES, ROOT, begun, journal_lines, rows
from safetensors.torch import load_file

from selfplay.config import load_recipe
from selfplay.loop import run, run_stage


@pytest.fixture
def tmpdir_of_driver() -> Iterator[Path]:
    """A folder for temporary files with a name so short that Ray's sockets fit in."""
    made = Path(tempfile.mkdtemp(prefix="t"))
    yield made
    shutil.rmtree(made)


def signalled(
    arguments: list[str], folder: Path, ready: Callable[[], bool], number: int, group: bool
) -> tuple[int, str]:
    """Run `selfplay` until something is there, send a signal (to all of its processes, or to it alone), and return code and text.

    Fails if a process, a segment of shared memory or a file of its stays.
    """
    shared = shared_memory()
    driver = subprocess.Popen(
        [sys.executable, "-m", "selfplay", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for("work", lambda: driver.poll() is not None or ready())
    started = psutil.Process(driver.pid).children(recursive=True)
    (os.killpg if group else os.kill)(driver.pid, number)
    said = driver.communicate(timeout=300)[1]
    assert not psutil.wait_procs(started, timeout=60)[1], "no process is left"
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100]
    assert left == [], "no file is left"
    assert shared_memory() - shared <= in_use(), "no shared memory is left"
    return driver.returncode, said


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [(signal.SIGTERM, False, 75), (signal.SIGTERM, True, 75), (signal.SIGUSR1, True, 75), (signal.SIGINT, True, 130)],
    ids=["term", "term-all", "warning-all", "ctrl-c"],
)
def test_a_signal_while_workers_generate(
    pooled_recipe: Path, pooled_alone: Path, tmp_path: Path, tmpdir_of_driver: Path, number: int, group: bool, code: int
) -> None:
    directory = begun(pooled_recipe, tmp_path / "run", "launch.workers=2")
    asked = ["generate", str(directory), "-i", "1"]
    found, said = signalled(asked, tmpdir_of_driver, lambda: journal_lines(directory) >= 3, number, group)
    assert found == code and "give the same command again to go on" in said.splitlines()[-1], said
    assert "Traceback" not in said
    kept = journal_lines(directory)
    assert 3 <= kept < BATCHES
    run(load_recipe(pooled_recipe, [f"output={directory}"]), only_start=True)
    run_stage(directory, "generate", 1)
    assert rows(directory, "generate", "completions") == rows(pooled_alone, "generate", "completions")


def test_a_sigterm_while_workers_train(
    tiny_run: Path, tmp_path: Path, tmpdir_of_driver: Path, training_seed: int
) -> None:
    """To the driver alone, or to all: the weights behind it are those of workers that were never stopped, to the last bit."""
    made: list[dict[str, torch.Tensor]] = []
    for name in ("whole", "stopped", "all stopped"):
        home = tmp_path / name
        shutil.copytree(tiny_run, home, symlinks=True)
        for stage in ("policy", "evaluate"):
            shutil.rmtree(home / "iteration-001" / stage)
        shutil.rmtree(home / "iteration-002")
        (home / "outcome.json").unlink()
        changes = [f"output={home}", f"seed={training_seed}", "iterations=1", "launch.workers=2"]
        run(load_recipe(tiny_run.parent / "tiny.yaml", changes), only_start=True)
        asked = ["policy", str(home), "-i", "1"]
        if name != "whole":
            worker = home / "logs" / "iteration-001-policy" / "rank-1.txt"
            found, said = signalled(
                asked, tmpdir_of_driver, worker.is_file, signal.SIGTERM, group=name == "all stopped"
            )
            assert found == 75 and "give the same command again to go on" in said.splitlines()[-1], said
            assert "Traceback" not in said
            kept = (home / "iteration-001/policy.partial/work/checkpoint-1").is_dir()
            assert kept or name == "all stopped", "saved behind the step under way, unless the workers were ended too"
        subprocess.run([sys.executable, "-m", "selfplay", *asked], cwd=ROOT, check=True)
        made.append(load_file(home / "iteration-001/policy/model.safetensors"))
    whole, *others = made
    assert all(bool((whole[name] == other[name]).all()) for other in others for name in whole)
