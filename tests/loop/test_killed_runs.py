"""Twenty killed runs leave nothing behind: no process, no open file, no shared memory, no files beside the last ones."""

import os
import shutil
import time
from pathlib import Path

import psutil
from holding import MEGABYTE, held, in_use, shared_memory
from killing import Moment, in_process

from selfplay.storage.files import read_json

KILLS = 20


def train_policy(directory: Path) -> None:
    """Run PPO of the first iteration."""
    from selfplay.loop import run_stage

    run_stage(directory, "policy", 1)


def test_twenty_killed_runs_leave_nothing_behind(tiny_run: Path, tmp_path: Path) -> None:
    directory, stage = tmp_path / "run", "iteration-001/policy"
    shutil.copytree(tiny_run, directory, symlinks=True)
    shutil.rmtree(directory / stage)
    moments = [
        Moment("selfplay.stages.policy", "PPOTrainer", 1),
        Moment("selfplay.rl.trainer", "PPOTrainer._learn", 1),
        Moment("selfplay.rl.checkpoint", "write_sealed", 1),
        Moment("selfplay.storage.durable", "_sync", 2),
    ]
    begun, group = time.time(), os.getpgrp()
    assert in_process(train_policy, directory, moment=moments[0]) == -9  # starts the server that all others come from
    before, shared = held(), shared_memory()
    size = len(list(directory.rglob("*")))
    for number in range(1, KILLS):
        assert in_process(train_policy, directory, moment=moments[number % len(moments)]) == -9
    after = held()
    assert {**after, "bytes": 0} == {**before, "bytes": 0}
    assert after["bytes"] - before["bytes"] < 20 * MEGABYTE
    assert shared_memory() - shared <= in_use()
    assert len(list(directory.rglob("*"))) <= size + 3, "what a killed run leaves, the next one clears"
    orphans = [
        process.pid
        for process in psutil.process_iter(["pid", "ppid", "create_time"])
        if process.info["ppid"] == 1 and process.info["create_time"] > begun and os.getpgid(process.pid) == group
    ]
    assert orphans == []

    assert in_process(train_policy, directory) == 0
    one, other = (read_json(folder / stage / "manifest.json")["outputs"] for folder in (tiny_run, directory))
    assert one["model.safetensors"] == other["model.safetensors"] and one.keys() == other.keys()
    assert not list(directory.rglob("*.partial"))
