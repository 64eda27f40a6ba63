"""Two machines on one: network namespaces joined by a cable (a veth pair), in which Ray runs as on two computers.

The disk is shared. The second machine has a /dev/shm and a folder for Ray of its own. Needs root and the command `ip`.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

ADDRESSES = ("10.0.0.1", "10.0.0.2")
PORT = 6379
SECONDS_UNTIL_DEAD = 6
"""After which the head gives a machine up that does not answer: five checks, each a second after the one before."""


class Machines:
    """Namespaces `names`, of which the first is the head of a Ray cluster. Each has one CPU for workers."""

    def __init__(self) -> None:
        self.names = tuple(f"sp{os.getpid()}{letter}" for letter in "ab")
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        checks = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 5}
        self.environment = {
            **os.environ,
            **{f"RAY_health_check_{name}": str(value) for name, value in checks.items()},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    @property
    def address(self) -> str:
        """Where the head listens."""
        return f"{ADDRESSES[0]}:{PORT}"

    def start(self) -> None:
        """Lay the cable and start Ray on both; fails with what `ip` says where namespaces are not allowed."""
        first, second = self.names
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "cable", "up")
        common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        self._ray(0, f"--node-ip-address={ADDRESSES[0]}", *head, *common)
        self._ray(1, f"--node-ip-address={ADDRESSES[1]}", f"--address={self.address}", *common)

    def open(self, number: int, command: Sequence[str], **options: object) -> "subprocess.Popen[str]":
        """Start a command on a machine."""
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            ["ip", "netns", "exec", self.names[number], *command], env=self.environment, text=True, **options
        )

    def processes(self, number: int, name: str = "") -> list[psutil.Process]:
        """Return a machine's processes whose name begins so."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[number]], capture_output=True, text=True).stdout
        found = []
        for pid in listed.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                one = psutil.Process(int(pid))
                found += [one] if one.name().startswith(name) else []
        return found

    def cable(self, state: str) -> None:
        """Plug the cable in ("up") or pull it out ("down")."""
        _ip("-n", self.names[1], "link", "set", "cable", state)

    def close(self) -> None:
        """End all that runs on the machines, and remove them."""
        for number, name in enumerate(self.names):
            for one in self.processes(number):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ray(self, number: int, *options: str) -> None:
        """Start Ray on a machine and wait until it is up."""
        ray = f"{Path(sys.executable).parent / 'ray'} start {' '.join(options)}"
        own = f"mount -t tmpfs tmpfs {self.folder} && mount -t tmpfs tmpfs /dev/shm && " if number else ""
        started = self.open(number, ["sh", "-c", own + ray], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = started.communicate(timeout=300)
        assert started.returncode == 0, said


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(
            f"network namespaces are not allowed here (`ip {' '.join(arguments)}`: {done.stderr.strip()}); this test needs "
            "root, or a machine that lets you make them"
        )


@contextlib.contextmanager
def two_machines() -> Iterator[Machines]:
    """Two machines in the block."""
    made = Machines()
    try:
        made.start()
        yield made
    finally:
        made.close()


def wait_for(what: str, seen: "object", seconds: float = 300) -> None:
    """Wait until `seen()` is true; fails, naming it, if that takes too long."""
    end = time.monotonic() + seconds
    while not seen():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.005)
