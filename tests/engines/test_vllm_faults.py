"""vLLM whose processes die or stop answering: an error that names what happened, soon, nothing left behind, and a resume.

Two vLLMs are started for their faults, and two more by the run whose engine is killed and that goes on.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from engine_faults import engine_processes, kill_engine
from test_vllm import PROMPTS, llama, write_checkpoint
from tiny_run import write_recipe

from selfplay.config import Engine, SamplingParams
from selfplay.engines.vllm import VllmEngine
from selfplay.errors import EngineFailed

ROOT = Path(__file__).parents[2]
SHORT = SamplingParams(max_tokens=4)


@pytest.fixture
def engine(tmp_path: Path) -> VllmEngine:
    """A vLLM that is to be broken."""
    return VllmEngine(write_checkpoint(tmp_path, llama(False, 0)), Engine(kind="vllm", timeout=300.0))


def in_flight(fault: Callable[[], object]) -> None:
    """Let the fault strike in two seconds, while a call waits."""
    timer = threading.Timer(2.0, fault)
    timer.daemon = True
    timer.start()


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=60)[1]


def test_a_worker_that_dies_during_a_transfer_of_weights_is_named(engine: VllmEngine) -> None:
    """It is stopped first, so that the wait for its answer is under way when it is killed."""
    processes, us = engine_processes(os.getpid()), os.getpid()
    assert {word for process in processes for word in process.cmdline() if word} == {"VLLM::EngineCore", "VLLM::Worker"}
    kill_engine(us, "Worker", signal.SIGSTOP)
    in_flight(lambda: kill_engine(us, "Worker"))
    with pytest.raises(
        EngineFailed, match=r"vLLM's process VLLM::\w+ \(\d+\) died during a transfer of weights; what is"
    ):
        engine.update_weights(llama(False, 1))
    with pytest.raises(EngineFailed, match="died during a transfer of weights"):
        engine.generate(PROMPTS, SHORT)
    engine.close()
    assert gone(processes)


def test_an_engine_that_no_longer_answers_ends_at_the_limit(engine: VllmEngine) -> None:
    processes, us = engine_processes(os.getpid()), os.getpid()
    assert len(engine.generate(PROMPTS, SHORT)) == 2
    engine.watchdog.seconds = 3.0
    for process in processes:
        process.suspend()
    with pytest.raises(
        EngineFailed, match=r"vLLM gave no answer for 3 s during a batch of completions \(engine.timeout\)"
    ):
        engine.generate(PROMPTS, SHORT)
    engine.close()
    assert gone(processes) and not engine_processes(us)


SCRIPT = """
import os, sys
from engine_faults import kill_engine
from selfplay import cli
from selfplay.engines.vllm import VllmEngine

reload, calls = VllmEngine._reload, []


def dying(engine, directory):
    calls.append(1)
    if len(calls) == int(os.environ["DIE_AT"]):
        kill_engine(os.getpid())
    reload(engine, directory)


VllmEngine._reload = dying
if __name__ == "__main__":
    cli.main()
"""


def test_a_run_whose_engine_dies_during_ppo_ends_with_a_sentence_and_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(SCRIPT)
    recipe = write_recipe(tmp_path)
    overrides = ["iterations=1", "engine.kind=vllm", f"output={tmp_path / 'run'}"]

    def run(die_at: int) -> "subprocess.CompletedProcess[str]":
        paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONPATH": paths, "DIE_AT": str(die_at)}
        return subprocess.run(
            [sys.executable, str(script), "run", str(recipe), *overrides],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=570,
        )

    died = run(die_at=2)
    assert died.returncode == 1, died.stderr
    assert "error: vLLM's process" in died.stderr and "died during a transfer of weights" in died.stderr
    assert "VLLM::EngineCore" in died.stderr
    assert "Traceback" not in died.stderr
    went_on = run(die_at=0)
    assert went_on.returncode == 0, went_on.stderr
    assert (tmp_path / "run" / "iteration-001" / "evaluate" / "manifest.json").is_file()
