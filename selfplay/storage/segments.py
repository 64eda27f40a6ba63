"""Shared memory that an engine's processes make: known by who maps it, removed with them, or by the next engine after a kill.

Python's tracker of shared memory would remove what is left as its process ends, but Ray kills it with a worker. So an owner names
what its engine made in a record beside the engine's temporary files, under a lock that the system takes away with the process,
however that ends. A record whose lock is free is that of a dead owner. Left out: what an engine made whose owner was killed
while it came up, which is not written down yet.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from multiprocessing.shared_memory import SharedMemory
from os import getuid
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from selfplay.storage import durable

SHARED = Path("/dev/shm")
SEGMENT = re.compile(r" (\d+) +" + f"{SHARED}/")
"""A line of /proc/PID/maps about a file of shared memory, with its inode: the file may have another name by now."""
OF_AN_ENGINE = re.compile(r"psm_|sem\.mp-|torch_|nccl-|vllm_|.*-cpushm")
"""The names that Python's `multiprocessing` (two), torch, NCCL and vLLM 0.31 (two) give to shared memory."""
PREFIX = "selfplay-vllm-"
"""What the names of engines' temporary folders begin with."""
RECORD, LOCK = "shared-memory.json", "owner.lock"


class Record:
    """The record of an engine in its temporary folder, its lock held for as long as this process lives or until `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, FileLock(folder / LOCK)
        self._lock.acquire()

    def write(self, inodes: set[int]) -> None:
        """Name the engine's files of shared memory, given by inode. Raises NotWritten."""
        named = {file.name: inode for file, inode in shared_files() if inode in inodes}
        durable.write(self.folder / RECORD, json.dumps(named))

    def close(self) -> None:
        """Let the lock go; the folder is gone by then."""
        self._lock.release()


def remove_after_dead(temporary: Path) -> None:
    """Remove what engines left whose owners are dead: their folders in `temporary`, and the shared memory named there."""
    for record in temporary.glob(f"{PREFIX}*/{RECORD}"):
        clear(record.parent)


def clear(folder: Path) -> None:
    """Remove an engine's temporary folder and what its record names, unless its owner lives or another process is at it.

    Without a record, or with one that cannot be read, the folder goes alone. A folder of another user's stays.
    """
    with contextlib.suppress(OSError, Timeout):
        if folder.is_symlink() or folder.stat().st_uid != getuid():
            return
        with FileLock(folder / LOCK, timeout=0):
            named = _named_in(folder)
            remove_segments({inode for file, inode in shared_files() if named.get(file.name) == inode})
            shutil.rmtree(folder, ignore_errors=True)


def _named_in(folder: Path) -> dict[str, int]:
    try:
        named = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return named if isinstance(named, dict) else {}


def segments_of(processes: Iterable[psutil.Process]) -> set[int]:
    """Return the inodes of the shared memory that some processes have mapped and this one has not; none without Linux's /proc."""
    return set().union(*(_mapped(process.pid) for process in processes)) - _mapped(psutil.Process().pid)


def _mapped(number: int) -> set[int]:
    try:
        maps = Path(f"/proc/{number}/maps").read_text(errors="replace")  # paths may be any bytes
        return {int(inode) for inode in SEGMENT.findall(maps)}
    except OSError:  # it is gone
        return set()


def shared_files() -> Iterator[tuple[Path, int]]:
    """Yield the files of shared memory with their inodes; none where there is no such folder."""
    with contextlib.suppress(OSError):
        for file in SHARED.iterdir():
            with contextlib.suppress(OSError):  # its owner has just removed it
                yield file, file.stat().st_ino


def remove_segments(inodes: set[int]) -> None:
    """Remove the files of shared memory with these inodes that are named as an engine's; let Python's tracker know of its own."""
    for file, inode in shared_files() if inodes else ():
        if inode not in inodes or not OF_AN_ENGINE.match(file.name):
            continue
        with contextlib.suppress(OSError):  # its owner has just removed it
            if file.name.startswith("psm_"):  # Python's name for it
                segment = SharedMemory(file.name)
                segment.close()
                segment.unlink()
            else:
                file.unlink()
