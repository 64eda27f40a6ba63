"""What a process holds, for tests that nothing piles up."""

import gc
from pathlib import Path
from typing import Any

import psutil
import torch

MEGABYTE = 1 << 20


def held() -> dict[str, Any]:
    """What this process holds: bytes of memory, open files, threads, tensors, and the processes it has started."""
    gc.collect()
    me = psutil.Process()
    return {
        "bytes": me.memory_info().rss,
        "files": me.num_fds(),
        "threads": me.num_threads(),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()),
        "processes": sorted(child.pid for child in me.children(recursive=True)),
    }


def shared_memory() -> set[str]:
    """Files in /dev/shm, whether or not anyone still uses them."""
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def in_use() -> set[str]:
    """Files in /dev/shm that some process has mapped or open; others run their own on this machine."""
    found: set[str] = set()
    for process in psutil.process_iter():
        try:
            found.update(
                Path(region.path).name for region in process.memory_maps() if region.path.startswith("/dev/shm/")
            )
            found.update(Path(file.path).name for file in process.open_files() if file.path.startswith("/dev/shm/"))
        except psutil.Error:  # it has just ended, or is another user's
            continue
    return found
