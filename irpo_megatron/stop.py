"""Stop and come back: how a process learns that it should keep what it has and end.

SIGTERM and SIGUSR1 ask for it; Slurm sends them before a time limit. A stage that can save in the midst of its work
looks between two steps whether it was asked:

    with stop_requests() as stop:
        for step in range(first_step, steps):
            ...
            if stop.requested:  # under several ranks they agree first: they do not all see it at the same step
                save(...)
                raise Interrupted(f"stopped after step {step + 1} of {steps}")

It was asked by a signal of its own, or by the driver's stop file, which is what works through torchrun (that dies of
SIGUSR1, and kills the ranks 30 s after SIGTERM). Where there is no such block the driver ends the stage at once, so
begin it where there is something to save: not before the model is loaded.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from irpo_megatron.errors import Interrupted
from irpo_megatron.request_files import current_request, listening_path, stop_path

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

Handler = Callable[[int, FrameType | None], None]


class StopRequests:
    """Whether this process was asked to save and end."""

    def __init__(self, stop_file: Path | None) -> None:
        self._stop_file = stop_file
        self._got_signal = False

    @property
    def requested(self) -> bool:
        """Costs a look at the file system."""
        return self._got_signal or (self._stop_file is not None and self._stop_file.exists())

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self._got_signal = True


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Listen in a stage's process: in this block a signal ends nothing, and the driver waits."""
    request = current_request()
    stop = StopRequests(None if request is None else stop_path(request))
    with on_stop_signal(stop.on_signal):
        if request is not None:
            listening_path(request).touch()
        yield stop


@contextlib.contextmanager
def on_stop_signal(handler: Handler) -> Iterator[None]:
    """Have SIGTERM and SIGUSR1 handled in this block; only in the main thread, as Python wants it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)  # None: it was no handler of Python's


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Ctrl-C is handled: by an exception, wherever the program stands."""
    raise Interrupted(f"stopped by {signal.Signals(number).name}")
