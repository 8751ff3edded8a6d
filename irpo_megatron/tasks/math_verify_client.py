"""Asking the package math-verify whether two answers are equal, under a deadline.

The package evaluates what a model wrote, and `9^{9^9}` is seven characters: no cap on the length bounds it. Its own
time limit rests on `signal.alarm`, which fails outside the main thread and does not reach into long integer
arithmetic. So it works in a helper process (`math_verify_helper`), which is ended when it overruns.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading

from irpo_megatron.errors import UserError

MAX_CHARACTERS = 500
"""Longer answers are not asked about, and so are not equal."""
DEADLINE_SECONDS = 5.0
"""A pair takes about 0.02 s; one that takes longer than this counts as unequal."""
START_SECONDS = 120.0
"""Importing sympy takes a second from a local disk, and far longer from a busy network file system."""


def require_math_verify() -> None:
    """Complain before the work begins, not at the first pair.

    Raises:
        UserError: the package math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "grading 'math-verify', but the package math-verify is not installed",
            "this grading is an extra of irpo-megatron",
            'pip install "irpo-megatron[math]", or use the grading strict',
        )


def verified_equal(answer: str, gold: str) -> bool:
    """Whether math-verify calls the answer equal to the gold one; False where it runs into the deadline.

    Raises:
        UserError: the helper process does not start.
    """
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    # One helper a process: after a fork, parent and child must not share a pipe.
    return _helper_of(os.getpid()).equal(answer, gold)


@functools.cache
def _helper_of(_pid: int) -> _Helper:
    return _Helper()


class _Helper:
    """The helper process, started when first asked and again after it was ended. It ends when its input closes, that
    is with this process at the latest."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def equal(self, answer: str, gold: str) -> bool:
        with self._lock:
            process = self._process = self._process or _start()
            try:
                reply = _ask(process, {"answer": answer, "gold": gold})
            except BrokenPipeError:  # it died after its last reply
                reply = None
            if reply is None:
                _end(process)
                self._process = None
            return reply == b"equal\n"


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "irpo_megatron.tasks.math_verify_helper"],
        # It must find the same packages as this process, whichever way this one found them.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    if _reply(process, START_SECONDS) != b"ready\n":
        _end(process)
        raise UserError(
            f"the helper process of the grading math-verify did not start within {START_SECONDS:.0f} s",
            "it must be able to import math_verify",
            "run `python -c 'import math_verify'` to see why it cannot, or use the grading strict",
        )
    return process


def _ask(process: subprocess.Popen[bytes], question: dict[str, str]) -> bytes | None:
    assert process.stdin is not None, "started with a pipe"
    process.stdin.write(json.dumps(question).encode() + b"\n")
    return _reply(process, DEADLINE_SECONDS)


def _reply(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """One line, or None where none came in time. A reply is a few bytes, written at once: it is never cut in two."""
    assert process.stdout is not None, "started with a pipe"
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return (process.stdout.readline() or None) if selector.select(seconds) else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
