"""Freed memory given back to the system: Python's cycles, and the pages that glibc keeps between blocks that are in use."""

import ctypes
import gc


def release_memory() -> None:
    """Give back what is free. Weights below 32 MB lie on glibc's heap, which otherwise only shrinks from its end."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
