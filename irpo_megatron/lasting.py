"""Python's search for reference cycles, spared what lives as long as the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside, as imported modules are, stays: it is not searched for cycles, neither meanwhile nor later.

    torch, transformers and Megatron-Core are a million objects. To search them again and again while they are imported
    takes a quarter of that time, and to search them once more when the process ends over a second.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
