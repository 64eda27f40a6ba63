"""Freed memory given back to the system: Python's cycles, and the pages that glibc keeps between blocks that are in use."""

import ctypes
import gc


def release_memory() -> None:
    """Give back what is free, and what only cycles hold."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Give back what is free. Tensors below 32 MB lie on glibc's heap, which otherwise only shrinks from its end."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
