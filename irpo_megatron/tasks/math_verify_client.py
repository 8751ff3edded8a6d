"""Asking the package math-verify whether two answers are equal, under limits.

The package evaluates what a model wrote, and `9^{9^9}` is seven characters: no cap on the length bounds it. So it works
in a helper process (`math_verify_helper`) that ends when it takes too much time or memory.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re

from irpo_megatron.errors import UserError
from irpo_megatron.tasks.helper_process import HelperProcess
from irpo_megatron.tasks.limits import Limits
from irpo_megatron.tasks.verdict import Verdict

MAX_CHARACTERS = 500
"""Longer answers are not asked about, and so are not equal."""
LIMITS = Limits()

# What the package passes over: the base of a number (it calls 121_3 equal to 121_4), and a relation that says that the
# two sides are not the same (of `\neq 5` it reads the 5).
_PASSED_OVER = re.compile(r"[0-9}]\s*_|\\(?:neq?|not|approx|sim|simeq)(?![A-Za-z])|[≠≈]")


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


def verified_equal(answer: str, gold: str) -> Verdict:
    """Whether math-verify calls the answer equal to the gold one; what it would pass over is not, and is not asked.

    Raises:
        UserError: the helper process does not start.
    """
    if max(len(answer), len(gold)) > MAX_CHARACTERS or any(map(_PASSED_OVER.search, (answer, gold))):
        return Verdict.WRONG
    # One helper a process: after a fork, parent and child must not share a pipe.
    reply = _helper_of(os.getpid()).ask({"answer": answer, "gold": gold})
    if reply is None or reply["equal"] is None:
        return Verdict.UNGRADED
    return Verdict.RIGHT if reply["equal"] else Verdict.WRONG


@functools.cache
def _helper_of(_pid: int) -> HelperProcess:
    return HelperProcess("irpo_megatron.tasks.math_verify_helper", limits=LIMITS)
