"""Python's search for reference cycles, spared what lives as long as the process."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside, as imported modules are, stays: it is not searched for cycles, neither meanwhile nor later.

    torch, transformers and Megatron-Core are a million objects. To search them again and again while they are imported
    takes a fifth of that time. Whatever else is there when the block ends lasts too: it belongs where little is.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def end_without_a_search() -> None:
    """Have this process, when it ends, give back what it still has without a search; with torch that takes a second."""
    atexit.register(gc.freeze)
