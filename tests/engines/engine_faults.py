"""Faults of engines and servers to be injected into a run: a dead or stopped vLLM, a server that misbehaves.

kill_engine(os.getpid(), "EngineCore")               # SIGKILL; any process of vLLM's by its title, Worker too
kill_engine(pid, "EngineCore", signal.SIGSTOP)        # it no longer answers
with serving(always("gzip bomb")) as server: ...      # misbehaving.FAULTS and HOSTILE name the faults
"""

import signal
from collections.abc import Callable

import psutil


def engine_processes(owner: int, title: str = "VLLM::") -> list[psutil.Process]:
    """The processes of vLLM's below a process whose title holds `title`: VLLM::EngineCore, VLLM::Worker."""
    found = []
    for child in psutil.Process(owner).children(recursive=True):
        try:
            if title in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:  # it ended while we looked
            continue
    return found


def kill_engine(owner: int, title: str = "EngineCore", by: signal.Signals = signal.SIGKILL) -> list[int]:
    """Send a signal to the owner's vLLM processes of that title and give their numbers."""
    found = engine_processes(owner, title)
    for process in found:
        process.send_signal(by)
    return [process.pid for process in found]


def always(fault: str) -> Callable[[str, int], str]:
    """The fault that strikes every call, for `misbehaving.serving`."""
    return lambda text, number: fault
