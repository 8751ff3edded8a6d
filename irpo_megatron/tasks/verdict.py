"""What a grader says of a completion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """A third value beside right and wrong: a grader that gave up has found nothing out about the answer."""

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADED = "ungraded"
    """The grader ran out of time or memory, or failed. It counts as wrong, and is counted apart."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a completion, and the answer that it is about."""

    answer: str | None
    """As the completion words it; None where no final answer was found, or where the grader died over it."""
    verdict: Verdict
