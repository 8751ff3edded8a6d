"""A watchdog for processes that wait for each other: where nothing moves any more, it says where, and ends the process.

    with Watchdog(seconds, rank=place.rank) as dog:
        for step in ...:
            dog.beat(f"step {step}")

When a rank hangs in a collective, the others hang in the same one until the time of the job is over, and nobody learns
where. Here each rank writes its own stacks to the log and ends. Ranks stall within moments of one another, because they
wait for each other; those that end first would take the rest with them, so all wait a little before they do.

A Python thread does the telling, and cannot run while C code holds the interpreter's lock: the timer of faulthandler,
which needs no lock, stands behind it as the last resort. `seconds` must be longer than the longest thing between two
beats, such as saving a checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from types import TracebackType

from irpo_megatron.rank_log import note
from irpo_megatron.request_files import current_request, leave_error

_STDERR = 2  # the descriptor: a stalled thread may hold the lock of sys.stderr
_STATUS = 1


class Watchdog:
    """Ends this process when no `beat` has come for `seconds`, in its `with` block."""

    def __init__(self, seconds: float, *, rank: int, grace: float = 5.0) -> None:
        """
        Args:
            grace: Seconds between the stacks and the end, for the other ranks to write theirs.
        """
        self._seconds = seconds
        self._rank = rank
        self._grace = grace
        self._last = (time.monotonic(), "the start")
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.beat("the start")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, label: str) -> None:
        """Something moved; `label` says what, as in 'step 12'."""
        self._last = (time.monotonic(), label)
        self._set_timer(self._seconds + self._grace)

    def _set_timer(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while True:
            last = self._last
            since, label = last
            if self._left.wait(max(0.0, since + self._seconds - time.monotonic())):
                return
            if self._last is not last:
                continue
            self._set_timer(10 * self._grace)  # what follows takes longer than the timer leaves, and can hang too
            sentence = f"rank {self._rank}: nothing moved for {self._seconds:g} s (last: {label})"
            note("stall", last=label, stacks=self._write_stacks(sentence))
            if self._left.wait(self._grace):
                return
            if self._last is last:
                self._end(sentence)
            self._set_timer(self._seconds + self._grace)

    def _write_stacks(self, sentence: str) -> str:
        """All in one write: the ranks share a log, and write at the same moment.

        Returns:
            What was written.
        """
        with tempfile.TemporaryFile() as file:
            file.write(f"{sentence}; the stacks of process {os.getpid()}:\n".encode())
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            os.write(_STDERR, written := file.read())
        return written.decode(errors="replace")

    def _end(self, sentence: str) -> None:
        if (request := current_request()) is not None:
            leave_error(request, {"failure": f"{sentence}; the stacks of all ranks are in the log"})
        os._exit(_STATUS)
