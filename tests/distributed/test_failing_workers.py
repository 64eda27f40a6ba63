"""What is told of workers that fail: without a word, while another waits for them, or behind a signal."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from processes import in_processes

from selfplay import stopping
from selfplay.config import Launch
from selfplay.context import RunContext
from selfplay.distributed import cluster
from selfplay.distributed.collectives import all_gather, first_process_first, from_first, init_process_group, rank
from selfplay.errors import ConfigError, SelfplayError, WorkersFailed, as_told, first_line
from selfplay.rundir import RunDirectory
from selfplay.stages import launch


class Wordless(Exception):
    """Has no text."""


def failing(error: BaseException) -> Any:
    """A function that raises."""

    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Wordless(), "a worker was lost (Wordless)"),
        (SystemExit(), "a worker was lost (SystemExit)"),
        (KeyboardInterrupt("stop"), "a worker was lost (stop)"),
        (RuntimeError("\n one.\n two"), "a worker was lost (one)"),
    ],
)
def test_a_stage_whose_workers_failed_never_counts_as_done(tmp_path: Path, error: BaseException, said: str) -> None:
    assert launch._wait_for(failing(error), tmp_path, 1) == said
    assert launch._wait_for(lambda: None, tmp_path, 1) is None


def test_workers_that_all_failed_behind_a_signal_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "requested", lambda: True)
    (tmp_path / "rank-0.error").write_text(json.dumps({"time": 1.0, "rank": 0, "kind": "Stopped"}))
    for_ever = threading.Event()
    assert launch._wait_for(for_ever.wait, tmp_path, 1) == "the workers did not finish"
    for_ever.set()


def test_ctrl_c_is_heard_also_where_the_workers_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk."""

    def interrupt() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopping, "requested", interrupt)
    leaving = threading.Event()
    threading.Timer(4 * launch.SECONDS_BETWEEN_LOOKS, leaving.set).start()
    with pytest.raises(KeyboardInterrupt):
        launch._wait_for(leaving.wait, tmp_path / "gone", 1)
    assert leaving.is_set(), "the workers had time to leave"


def test_ctrl_c_in_the_middle_of_waiting_gives_the_workers_time_to_leave(tmp_path: Path) -> None:
    """While a thread is joined it would be taken for ended: what it still asks Ray then ends the process with code 1."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    left = threading.Event()

    def interrupted_fit() -> None:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        left.set()

    try:
        with pytest.raises(KeyboardInterrupt):
            launch._wait_for(interrupted_fit, tmp_path, 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.is_set(), "the workers had time to leave"
    assert (tmp_path / launch.STOP).read_text() == "SIGINT"


def test_an_error_is_told_by_its_first_line_and_as_what_it_was() -> None:
    assert [first_line(error) for error in (ValueError(" a. \nb"), ValueError(), OSError(" "))] == [
        "a",
        "ValueError",
        "OSError",
    ]
    assert isinstance(as_told("ConfigError", "no", 2), ConfigError)
    other = as_told("Damaged", "no", 2)
    assert type(other) is SelfplayError and (str(other), other.exit_code) == ("no", 2)


def told(error: BaseException) -> list[tuple[str, str]]:
    """What each way of waiting for the first process raises where that one fails; then all still answer each other."""
    init_process_group()
    found = []
    try:
        from_first(failing(error))
    except Exception as raised:
        found.append((type(raised).__name__, str(raised)))
    try:
        with first_process_first():
            assert rank() == 0, "the others do not enter"
            raise error
    except Exception as raised:
        found.append((type(raised).__name__, str(raised)))
    with first_process_first():
        pass
    assert all_gather(rank()) == [0, 1]
    return found


def test_others_do_not_wait_for_a_first_process_that_failed(tmp_path: Path) -> None:
    known = in_processes(2, told, tmp_path / "known", ConfigError("give another"), seconds=60)
    assert known[0] == known[1] == [("ConfigError", "give another")] * 2
    unknown = in_processes(2, told, tmp_path / "unknown", KeyError("x"), seconds=60)
    assert unknown[0] == [("KeyError", "'x'")] * 2
    assert unknown[1] == [("RuntimeError", "the first process failed with KeyError: 'x'")] * 2


def test_a_worker_that_is_the_only_one_launches_none(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunContext] = []
    monkeypatch.setattr("selfplay.stages.policy.run", lambda run, iteration: seen.append(run))
    recipe = RunDirectory(tiny_run).recipe().model_copy(update={"launch": Launch(workers=1), "output": str(tmp_path)})
    task = {"recipe": recipe.model_dump(mode="json"), "stage": "selfplay.stages.policy", "iteration": 1, "extra": ()}
    (tmp_path / launch.STOP).write_text("")
    monkeypatch.setattr(stopping, "ask", lambda name: None)
    launch._run_stage(task, tmp_path)
    assert len(seen) == 1 and not seen[0].on_workers


def test_an_open_engine_is_closed_before_another_worker_holds_it(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Open:
        def close(self) -> None:
            closed.append("closed")

    shared: Any = Open()
    monkeypatch.setattr("selfplay.engines.open.follower", lambda config, dtype: shared)
    run = RunContext(RunDirectory(tiny_run).recipe(), RunDirectory(tiny_run), [], [])
    run._engine = Open()  # type: ignore[assignment]
    assert run.engine(tiny_run, "policy", to_train=True) is shared and closed == ["closed"]


SLOW = [sys.executable, "-c", "import time; time.sleep(600)  # as /ray/core/raylet"]
OTHER = [sys.executable, "-c", "import time; time.sleep(600)  # of /home/ray/anaconda3/bin/python"]


@pytest.mark.parametrize(
    ("failures", "reason", "starts"),
    [
        (0, "", 1),
        (2, "The current node timed out during startup.", 3),
        (3, "The current node timed out during startup.", 3),
        (1, "No space left on device", 1),
    ],
)
def test_ray_that_starts_too_slowly_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, reason: str, starts: int
) -> None:
    """And what a start that failed has left is ended, but for what was there before and what is not Ray's."""
    begun, others = [], [subprocess.Popen(SLOW)]
    told: list[dict[str, Any]] = []
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def init(**options: Any) -> str:
        told.append(options)
        (tmp_path / "ray" / f"session_{len(told)}_{os.getpid()}" / "logs").mkdir(parents=True)
        if len(told) <= failures:
            begun.append(subprocess.Popen(SLOW))
            others.append(subprocess.Popen(OTHER))
            raise Exception(reason)
        return "connected"

    monkeypatch.setattr(cluster, "_init", init)
    try:
        if failures < starts:
            assert cluster._start(Launch(workers=3)) == "connected"
        else:
            with pytest.raises(WorkersFailed, match=f"Ray did not start on this machine: {reason.rstrip('.')}"):
                cluster._connect(Launch(workers=3))
        assert len(told) == starts and told[0]["num_cpus"] >= 4 and len(begun) == failures
        assert all(one.wait(10) == -9 for one in begun) and all(one.poll() is None for one in others)
        assert [folder.name for folder in (tmp_path / "ray").iterdir()] == [f"session_{starts}_{os.getpid()}"]
    finally:
        for one in (*begun, *others):
            one.kill()
            one.wait()
