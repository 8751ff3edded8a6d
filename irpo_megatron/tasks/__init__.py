"""The tasks of the paper (section 3) and the CPU demo: prompt template, answer extraction, grading, data.

Pure text: no torch, no network unless a source says `hub:`. Example:

    task = load_task("gsm8k")
    problems = task.load("gsm8k/train.jsonl", split="train")
    task.is_correct("... Final answer: $18.00", problems[0].answer)
"""

from __future__ import annotations

from irpo_megatron.errors import UserError
from irpo_megatron.tasks.arc import ArcTask
from irpo_megatron.tasks.arithmetic import ArithmeticTask
from irpo_megatron.tasks.base import Task
from irpo_megatron.tasks.gsm8k import Gsm8kTask
from irpo_megatron.tasks.math import MathTask

__all__ = ["TASK_NAMES", "Task", "load_task"]

_TASKS: dict[str, type[Task]] = {task.name: task for task in (Gsm8kTask, MathTask, ArcTask, ArithmeticTask)}

TASK_NAMES = tuple(_TASKS)


def load_task(name: str, *, grading: str | None = None) -> Task:
    """The task of that name; `grading` chooses among the task's gradings, its first one where None.

    Raises:
        UserError: the name is unknown, the task has no such grading, or the grading needs a missing package.
    """
    if name not in _TASKS:
        raise UserError(
            f"task {name!r}",
            f"the tasks are {', '.join(TASK_NAMES)}",
            "choose one of them",
        )
    return _TASKS[name](grading)
