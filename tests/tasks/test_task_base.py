"""`load_task`, and what holds for every task."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.tasks import TASK_NAMES, Task, load_task


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_is_found_by_its_name_and_travels(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.grading == task.gradings[0]
    copied: Task = copy.deepcopy(task)  # by the protocol that pickle uses
    assert type(copied) is type(task)
    assert not task.is_correct("", "1")
    assert task.extract_answer("Final answer: B\nmore") == "B"


def test_names() -> None:
    assert TASK_NAMES == ("gsm8k", "math", "arc", "arithmetic")
    with pytest.raises(UserError, match="gsm8k, math, arc, arithmetic"):
        load_task("gsm8")


@pytest.mark.parametrize("name", TASK_NAMES)
def test_an_unknown_grading_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"the gradings of {name} are "):
        load_task(name, grading="lenient")


def test_importing_the_tasks_imports_no_engine() -> None:
    heavy = ("torch", "datasets", "math_verify", "sympy", "transformers")
    code = f"import sys, irpo_megatron.tasks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert done.stdout.strip() == "[]"
