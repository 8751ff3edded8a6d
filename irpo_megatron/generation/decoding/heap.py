"""The C library's heap, told to keep what is freed.

A step frees and takes the same megabytes hundreds of times. By default glibc hands blocks of that size back to the
system, and every time they come back the system has to clear them: a third of all time, and more on virtual machines.
"""

from __future__ import annotations

import ctypes
import sys

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 2**25  # what glibc allows: larger ones do not come from the heap
_MOST_FREE = 2**30


def keep_freed_memory() -> None:
    """For this process, from now on; elsewhere than on Linux nothing happens."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_TRIM_THRESHOLD, _MOST_FREE)
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
