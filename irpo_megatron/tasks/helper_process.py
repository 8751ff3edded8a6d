"""A process that answers questions about what a model wrote, and may die over one.

Its program calls `helper_loop.serve`. Questions and replies are lines of JSON over its pipes, one at a time.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError
from irpo_megatron.tasks.limits import Limits

START_SECONDS = 120.0
"""Importing sympy takes a second from a local disk, and far longer from a busy network file system."""
DEADLINE_SECONDS = 300.0
"""Wall time of a reply. The process ends itself by its CPU time long before; this is for one that stands still."""


class HelperProcess:
    """Started when first asked, and again after it has died. It ends when its input closes, that is with this process
    at the latest.
    """

    def __init__(self, module: str, *arguments: str, limits: Limits) -> None:
        """`python -m MODULE LIMITS ARGUMENT ...`, the limits as JSON."""
        self._module = module
        self._arguments = (json.dumps(asdict(limits)), *arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, question: Json) -> Json | None:
        """The reply; None where the process died over the question or ran into the deadline.

        Raises:
            UserError: the process does not start.
        """
        with self._lock:
            used = self._process is not None
            reply, status = self._asked(question)
            # A process that has answered before may have died of what it had done before; a fresh one is asked again,
            # so that the reply depends on the question alone. CPU time is counted for each question anyway.
            if reply is None and used and status != -signal.SIGPROF:
                reply, _ = self._asked(question)
            return reply

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._end()

    def _asked(self, question: Json) -> tuple[Json | None, int | None]:
        """The reply; or None, and the status that the process ended with."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None, "started with a pipe"
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = _line(process, DEADLINE_SECONDS)
        except BrokenPipeError:  # it died after its last reply
            line = b""
        if not line.endswith(b"\n"):
            self._end()
            return None, process.returncode
        return json.loads(line), None

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, *self._arguments],
            # It must find the same packages as this process, whichever way this one found them. What depends on the
            # order of a set must come out the same in every helper.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches every process of the terminal's group; a death by it would pass for a verdict.
            start_new_session=True,
        )
        if _line(process, START_SECONDS) != b"ready\n":
            self._end()
            raise UserError(
                f"the helper process {self._module} did not start within {START_SECONDS:.0f} s",
                "completions are graded in processes of their own",
                f"run `python -m {self._module} '{self._arguments[0]}' {' '.join(self._arguments[1:])}` to see why it "
                "cannot",
            )
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):  # part of a question had not been written
                self._process.communicate()
            self._process = None


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line; nothing, or a part of one, where the process ends or the time does. A reply is written at once."""
    assert process.stdout is not None, "started with a pipe"
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(seconds) else b""
