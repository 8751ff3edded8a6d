"""Problems as the prompts that a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irpo_megatron.records import Problem
from irpo_megatron.tasks import Task
from irpo_megatron.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The prompt of one problem."""

    id: str
    """The problem's id."""
    text: str
    ids: tuple[int, ...]
    gold_tokens: int = 0
    """Tokens of the gold solution, which say how long a completion may become; 0 where there is none."""


def encode_prompts(problems: Sequence[Problem], task: Task, tokenizer: Tokenizer) -> list[Prompt]:
    """The task's prompt of each problem, in their order."""
    return [
        Prompt(
            id=problem.id,
            text=text,
            ids=tokenizer.encode_prompt(text),
            gold_tokens=len(tokenizer.encode_text(task.gold_completion(problem) or "")),
        )
        for problem in problems
        for text in [task.prompt(problem)]
    ]
