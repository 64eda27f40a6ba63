"""Calls of an engine that lives in processes of its own, none of which waits for ever.

A call runs in a thread while its caller looks, twice a second, whether the engine's processes are alive and how much time
has passed. vLLM 0.31 itself ends the wait for a completion when its engine dies, but no other: `collective_rpc` waits for
an answer that nobody is left to give. Shared memory that the engine's processes leave is removed with them.
"""

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psutil

from selfplay.errors import EngineFailed, SelfplayError
from selfplay.storage.segments import remove_segments, segments_of, shared_files

T = TypeVar("T")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 10.0
TRACKER = "resource_tracker"
GO_ON = "what is finished is saved: give the same command again to go on"


class Watchdog:
    """Runs the calls of one engine, one at a time, in a thread of its own. `seconds` is the longest that one may take."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.failure = ""
        """Why the engine is of no use any more."""
        self._processes: dict[psutil.Process, str] = {}
        self._segments: set[int] = set()
        self._others_segments = {inode for _, inode in shared_files()}
        """What was there before is somebody else's, even where the engine maps it."""
        self._before = set(psutil.Process().children(recursive=True))
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._busy: _Call | None = None
        self._thread = threading.Thread(target=self._work, name=f"{name} calls", daemon=True)
        self._thread.start()

    def watch(self) -> None:
        """Watch the processes that were started since the watchdog was made, now that all of them are there."""
        self._processes = {child: title_of(child) for child in self._started()}
        self._segments = segments_of(self._processes) - self._others_segments

    @property
    def segments(self) -> set[int]:
        """Inodes of the shared memory that the watched processes made."""
        return self._segments

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Return the function's result. `what` says what is waited for, such as "a batch of completions".

        Raises EngineFailed, naming the process, once one died, or once the call has taken too long; and whatever the
        function raises while the engine is well.
        """
        if self.failure:
            raise EngineFailed(self.failure)
        call = self._busy = _Call(function)
        self._calls.put(call)
        started = time.monotonic()
        while not call.done.wait(SECONDS_BETWEEN_LOOKS):
            if dead := self._dead():
                call.done.wait(SECONDS_BETWEEN_LOOKS)
                self._fail(f"{self.name}'s process {dead} died during {what}; {GO_ON}", call.error)
            if time.monotonic() - started > self.seconds:
                self._fail(
                    f"{self.name} gave no answer for {self.seconds:g} s during {what} (engine.timeout); {GO_ON}, or raise "
                    "engine.timeout if that is what it takes"
                )
        self._busy = None
        if call.error is None:
            result: T = call.result
            return result
        if not isinstance(call.error, SelfplayError):  # vLLM may tell of a death before it can be seen
            time.sleep(SECONDS_BETWEEN_LOOKS)
            dead = self._dead()
            if dead or type(call.error).__name__ == "EngineDeadError":
                self._fail(f"{self.name}'s process {dead or 'of its engine'} died during {what}; {GO_ON}", call.error)
        raise call.error

    def end(self, shutdown: Callable[[], object] | None) -> None:
        """End the engine, by its own `shutdown` if it is well, else by killing its processes; then the thread.

        An engine that never came up has no `shutdown`.
        """
        if shutdown is None:
            self._kill()
        elif self._busy is None and not self.failure:
            with contextlib.suppress(EngineFailed):
                self.call("its end", shutdown)
        else:
            self._kill()
            ending = _Call(shutdown)  # it may hang, as what it ends did
            threading.Thread(target=ending.run, name=f"{self.name} end", daemon=True).start()
            ending.done.wait(SECONDS_TO_END)
        self._kill()
        self._calls.put(None)

    def _fail(self, message: str, cause: BaseException | None = None) -> None:
        self.failure = message
        self._kill()
        raise EngineFailed(message) from cause

    def _dead(self) -> str:
        """Return the watched process that is dead, as `title (number)`; empty if all are alive."""
        for process, title in self._processes.items():
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            except psutil.NoSuchProcess:
                pass
            return f"{title} ({process.pid})"
        return ""

    def _started(self) -> list[psutil.Process]:
        """Our processes that were not there before, without Python's own that keeps track of shared memory."""
        started = set(psutil.Process().children(recursive=True)) - self._before
        return [child for child in started if title_of(child) != TRACKER]

    def _kill(self) -> None:
        """Kill the engine's processes, those that are watched or, before that, all that were started; remove what they shared."""
        processes = list(self._processes) or self._started()
        self._segments |= segments_of(processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        remove_segments(self._segments - self._others_segments)

    def _work(self) -> None:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGUSR1}
        )  # nor do the processes that a call starts get SLURM's
        while (call := self._calls.get()) is not None:
            call.run()


class _Call:
    """A call under way, and what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function, self.done = function, threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call, in whatever thread this is."""
        try:
            self.result = self.function()
        except BaseException as error:  # handed to the caller's thread
            self.error = error
        finally:
            self.done.set()


def title_of(process: psutil.Process) -> str:
    """Return what a process calls itself, such as VLLM::EngineCore."""
    try:
        words: Sequence[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return "gone"
    title = " ".join(word for word in words if word)
    return next((name for name in (TRACKER, "spawn_main") if name in title), title[:60])
