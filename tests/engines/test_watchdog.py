"""The watchdog over ordinary processes: what dies or hangs is named, soon, and nothing else is touched."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from selfplay.engines.vllm import VllmEngine
from selfplay.engines.vllm_worker import FOLDER_VARIABLE
from selfplay.engines.watchdog import Watchdog
from selfplay.errors import EngineFailed
from selfplay.storage import durable
from selfplay.storage.segments import PREFIX, RECORD, SHARED, Record, remove_after_dead

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def start() -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    begun: list[subprocess.Popen[bytes]] = []

    def one() -> "subprocess.Popen[bytes]":
        begun.append(subprocess.Popen(SLEEPER))
        return begun[-1]

    yield one
    for process in begun:
        process.kill()
        process.wait()


SHARER = """\
import sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
own, given = SharedMemory(create=True, size=1000), SharedMemory(sys.argv[1])
for one in (own, given):  # its tracker dies with it
    resource_tracker.unregister(one._name, "shared_memory")
print(own.name, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["found dead", "ended while it comes up", "ended"])
def test_shared_memory_goes_with_the_processes_and_ours_stays(tmp_path: Path, how: str) -> None:
    script = tmp_path / "sharer.py"
    script.write_text(SHARER)
    ours = SharedMemory(create=True, size=1000)
    before = {file.name for file in SHARED.iterdir()}
    dog = Watchdog("the engine", 60)

    def begin() -> tuple[Any, str]:
        process = subprocess.Popen([sys.executable, script, ours.name], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    process, name = dog.call("its start", begin)
    try:
        assert (SHARED / name).exists() and name not in before
        if how != "ended while it comes up":
            dog.watch()
        if how == "found dead":
            later(0.2, process.kill)
            with pytest.raises(EngineFailed, match="died during a wait"):
                dog.call("a wait", lambda: time.sleep(5))
            assert not (SHARED / name).exists(), "removed at once"
        dog.end(None if how == "ended while it comes up" else process.terminate)
        assert process.wait(10) != 0 and not (SHARED / name).exists()
        assert (SHARED / ours.name).exists(), "it is mapped here too"
    finally:
        process.kill()
        (SHARED / name).unlink(missing_ok=True)
        ours.close()
        ours.unlink()


MAPPER = """\
import mmap, sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
own = SharedMemory(create=True, size=1000)
resource_tracker.unregister(own._name, "shared_memory")
files = [open(path, "r+b") for path in sys.argv[1:]]
held = [mmap.mmap(file.fileno(), 0) for file in files]
print(own.name, flush=True)
time.sleep(600)
"""


def test_files_of_others_that_the_processes_map_stay(tmp_path: Path) -> None:
    """One that was there before, even under Python's own name, and one with a name of no engine's; a path need not be UTF-8."""
    earlier, later_one = (
        SHARED / f"psm_test{tmp_path.stat().st_ino}",
        SHARED / f"model{tmp_path.stat().st_ino}.safetensors",
    )
    odd = bytes(tmp_path) + b"/\xff"
    script = tmp_path / "mapper.py"
    script.write_text(MAPPER)
    earlier.write_bytes(b"weights")
    dog = Watchdog("the engine", 60)
    Path(os.fsdecode(odd)).write_bytes(b"weights")
    later_one.write_bytes(b"weights")

    def begin() -> tuple[Any, str]:
        command: list[str | bytes] = [sys.executable, str(script), str(earlier), str(later_one), odd]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    process, name = dog.call("its start", begin)
    try:
        assert (SHARED / name).exists()
        dog.watch()
        dog.end(process.terminate)
        assert process.wait(10) != 0 and not (SHARED / name).exists()
        assert earlier.exists() and later_one.exists()
    finally:
        process.kill()
        for file in (earlier, later_one):
            file.unlink(missing_ok=True)
        if name:
            (SHARED / name).unlink(missing_ok=True)


OWNER = """\
import sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from selfplay.storage.segments import Record
made = SharedMemory(create=True, size=1000)
resource_tracker.unregister(made._name, "shared_memory")
record = Record(Path(sys.argv[1]))
record.write({(Path("/dev/shm") / made.name).stat().st_ino})
print(made.name, flush=True)
time.sleep(600)
"""


def test_what_an_engine_shared_whose_owner_was_killed_goes_with_the_next_engine(tmp_path: Path) -> None:
    """And what a living owner's engine shares stays, as does another's file that has the name of a removed one by now."""
    owners, names, folders = [], [], [tmp_path / f"{PREFIX}{name}" for name in ("dead", "living", "renewed")]
    for folder in folders:
        folder.mkdir()
        owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        owners.append(owner)
        names.append(owner.stdout.readline().strip())
    (tmp_path / f"{PREFIX}starting").mkdir()
    mine = Record(tmp_path / f"{PREFIX}starting")
    mine.write(set())
    dead, living, renewed = (SHARED / name for name in names)
    aside = renewed.with_name(f"aside{os.getpid()}")
    try:
        remove_after_dead(tmp_path)
        assert all(folder.is_dir() for folder in folders) and dead.exists() and living.exists()
        for owner in (owners[0], owners[2]):
            owner.kill()
            owner.wait()
        renewed.rename(aside)  # so that its inode is not given again
        renewed.write_bytes(b"another's")
        remove_after_dead(tmp_path)
        assert not dead.exists() and living.exists() and renewed.exists()
        assert [folder.exists() for folder in folders] == [False, True, False]
        assert mine.folder.is_dir(), "our own engine lives"
    finally:
        aside.unlink(missing_ok=True)
        for owner, file in zip(owners, (dead, living, renewed), strict=True):
            owner.kill()
            owner.wait()
            file.unlink(missing_ok=True)


@pytest.mark.parametrize("cut", ['{"psm_12', "[]"])
def test_a_record_that_cannot_be_read_costs_its_folder(tmp_path: Path, cut: str) -> None:
    folder = tmp_path / f"{PREFIX}cut"
    folder.mkdir()
    (folder / RECORD).write_text(cut)
    remove_after_dead(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("written", [True, False])
def test_a_worker_without_its_core_leaves_a_living_owners_record(tmp_path: Path, written: bool) -> None:
    """Whoever ends the owner later needs it to find what was shared. Once the owner is dead, the folder goes."""
    folder = tmp_path / f"{PREFIX}living"
    folder.mkdir()
    owner = Record(folder)
    if written:
        owner.write(set())
    nobody = 2**30  # above any number of a process
    command = [sys.executable, "-c", f"from selfplay.engines.vllm_worker import _end_without; _end_without({nobody})"]
    environment = {**os.environ, FOLDER_VARIABLE: str(folder)}
    assert subprocess.run(command, env=environment, timeout=60).returncode == 1
    assert (folder / RECORD).exists() == written and folder.is_dir()
    owner.close()
    assert subprocess.run(command, env=environment, timeout=60).returncode == 1
    assert not folder.exists()


def test_an_engine_whose_record_cannot_be_written_ends_its_processes(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[], Any]
) -> None:
    begun: list[Any] = []

    def come_up(*_: object) -> SimpleNamespace:
        begun.append(start())
        core = SimpleNamespace(shutdown=begun[0].terminate)
        return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))

    def full(call: str, path: Path) -> None:
        if RECORD in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("selfplay.engines.vllm._start", come_up)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(durable, "hook", full)
    with pytest.raises(durable.NotWritten, match="No space left on device; free some space"):
        VllmEngine(tiny_run / "iteration-000" / "policy")
    assert begun[0].wait(10) == -signal.SIGTERM and not list(tmp_path.iterdir())


def watching(start: Callable[[], Any], seconds: float = 60.0) -> tuple[Watchdog, Any]:
    dog = Watchdog("the engine", seconds)
    process = dog.call("its start", start)
    dog.watch()
    return dog, process


def later(seconds: float, do: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


def test_results_and_errors_come_through(start: Callable[[], Any]) -> None:
    dog, process = watching(start)
    assert dog.call("a sum", lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        dog.call("a fraction", lambda: 1 // 0)
    assert dog.call("a sum", lambda: 2 + 2) == 4 and process.poll() is None
    dog.end(process.terminate)
    assert process.wait(10) != 0


def test_a_process_that_dies_ends_the_wait_and_is_named(start: Callable[[], Any]) -> None:
    dog, process = watching(start)
    later(0.2, process.kill)
    with pytest.raises(EngineFailed, match=rf"the engine's process .+ \({process.pid}\) died during a long wait; what"):
        dog.call("a long wait", lambda: time.sleep(120))
    with pytest.raises(EngineFailed, match="died during a long wait"):  # and every later call
        dog.call("another", lambda: None)


def test_a_call_that_never_returns_ends_at_the_limit_and_its_processes_with_it(start: Callable[[], Any]) -> None:
    dog, process = watching(start, seconds=1.0)
    with pytest.raises(EngineFailed, match=r"gave no answer for 1 s during a long wait \(engine.timeout\)"):
        dog.call("a long wait", lambda: time.sleep(120))
    assert process.wait(10) != 0
    began = time.monotonic()
    dog.end(lambda: time.sleep(120))  # an end that hangs as well holds nobody
    assert time.monotonic() - began < 60


def test_a_start_that_never_returns_leaves_nothing_behind(start: Callable[[], Any]) -> None:
    dog = Watchdog("the engine", 1.0)
    begun: list[Any] = []

    def hang() -> None:
        begun.append(start())
        time.sleep(120)

    with pytest.raises(EngineFailed, match="during its start"):
        dog.call("its start", hang)
    dog.end(None)
    assert begun[0].wait(10) != 0


def test_other_processes_are_left_alone(start: Callable[[], Any]) -> None:
    before = start()
    first, one = watching(start)
    second, other = watching(start)
    one.kill()
    with pytest.raises(EngineFailed):
        first.call("a wait", lambda: time.sleep(120))
    first.end(lambda: None)
    assert second.call("a sum", lambda: 1 + 1) == 2
    assert before.poll() is None and other.poll() is None
    assert psutil.pid_exists(other.pid)


def test_what_interrupts_the_caller_ends_a_call_under_way(start: Callable[[], Any]) -> None:
    import _thread

    dog, process = watching(start)
    later(0.3, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        dog.call("a long wait", lambda: time.sleep(120))
    dog.end(process.terminate)
    assert process.wait(10) != 0


def test_the_warning_of_slurm_does_not_end_the_processes_of_an_engine(start: Callable[[], Any]) -> None:
    """Sent to a whole job, it asks us to save; without a handler it would end an engine that is still needed for that."""
    dog, process = watching(start)
    process.send_signal(signal.SIGUSR1)
    assert dog.call("a sum", lambda: 1 + 1) == 2 and process.poll() is None
    assert "SIGUSR1" not in str(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "only the engine's thread is deaf to it"
    dog.end(process.terminate)
    assert process.wait(10) == -signal.SIGTERM
