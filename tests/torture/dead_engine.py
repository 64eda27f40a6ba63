"""vLLM dies, or stops answering, under a run: it ends with a sentence behind what vLLM itself says, and goes on to its end.

The end is compared by which files are there and what `verify` finds, not by its bytes: the last digits of what vLLM
samples depend on what happens to share a batch.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from engine_faults import engine_processes, kill_engine
from faults import EXACT, OTHER, Known, Outcome
from tiny_run import write_recipe

from selfplay.results.verify import verify
from selfplay.rundir import RunDirectory

ROOT = Path(__file__).parents[2]
SETTINGS = ("iterations=1", "engine.kind=vllm", "engine.timeout=90")
STAGES = ("generate", "label", "reward", "policy", "evaluate")


def begin(folder: Path) -> "subprocess.Popen[str]":
    """Start or go on with the run, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "selfplay",
        "run",
        str(folder / "tiny.yaml"),
        *SETTINGS,
        f"output={folder / 'run'}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def dead_engine(folder: Path, known: Known, number: int, draw: random.Random) -> Outcome:
    """A process of vLLM's is killed, or stopped, some seconds after it began."""
    folder.mkdir()
    write_recipe(folder)
    title, by = (("EngineCore", signal.SIGKILL), ("Worker", signal.SIGKILL), ("EngineCore", signal.SIGSTOP))[number % 3]
    after = draw.uniform(0, 15)
    detail = f"{by.name} of {title} {after:.1f} s after its start"
    process = begin(folder)
    while process.poll() is None and not engine_processes(process.pid, title):
        time.sleep(0.05)
    time.sleep(after)
    struck = kill_engine(process.pid, title, by) if process.poll() is None else []
    said = process.communicate(timeout=900)[1]
    if struck and (process.returncode != 1 or "\nerror: vLLM" not in said):
        return Outcome("dead engine", detail, OTHER, f"exit code {process.returncode}: {said[-1500:]}")
    again = begin(folder)
    said = again.communicate(timeout=900)[1]
    files = RunDirectory(folder / "run")
    finished = [name for name in STAGES if files.stage(1, name).is_dir()]
    if again.returncode or finished != list(STAGES) or verify(folder / "run").damage:
        return Outcome("dead engine", detail, OTHER, f"exit code {again.returncode}, {finished}: {said[-1500:]}")
    return Outcome("dead engine", detail, EXACT)
