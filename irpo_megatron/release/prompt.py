"""The prompt that a task's models were trained on, with a word in place of the question."""

from __future__ import annotations

from irpo_megatron.records import Problem
from irpo_megatron.tasks import load_task

_QUESTIONS = {"arithmetic": "3+4-2*5"}
"""Where a word would not be a question."""


def prompt_format(task: str) -> str:
    """The prompt of one problem, as the model continues it."""
    labels = ("A", "B", "C") if task == "arc" else ()
    problem = Problem(
        id="",
        question=_QUESTIONS.get(task, "QUESTION"),
        answer="",
        option_labels=labels,
        option_texts=("OPTION",) * len(labels),
    )
    return load_task(task).prompt(problem)
