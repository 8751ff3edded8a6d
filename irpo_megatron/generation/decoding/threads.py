"""Threads that each decode a part of the rows.

torch would share out every single operation among its threads, and there are hundreds of short ones a step: waiting for
each other costs as much as the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

# Threads take turns to hand operations to torch; more of them would wait for that.
_MOST_PARTS = 4


class Threads:
    """As many as torch may use on a CPU; on another device the caller alone.

    Attributes:
        count: Of parts that are worked on side by side.
    """

    def __init__(self, device: torch.device) -> None:
        threads = torch.get_num_threads()
        self.count = min(threads, _MOST_PARTS) if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.count, initializer=_use, initargs=(threads // self.count,))
        # A thread begins when there is work for it; what it sets is also the default of threads that torch meets later.
        everyone = threading.Barrier(self.count)
        wait([self._pool.submit(everyone.wait) for _ in range(self.count)])
        torch.set_num_threads(threads)

    def map(self, function: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """The results of all parts, in order."""
        if self.count == 1:
            return [function(part) for part in parts]
        return list(self._pool.map(function, parts))


def _use(threads: int) -> None:
    """How many torch uses for an operation of this thread."""
    torch.set_num_threads(threads)
    torch.get_num_threads()  # the first question settles it for the thread
