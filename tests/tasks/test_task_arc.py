"""ARC-Challenge: both forms of the data, the prompt's letters, and the one letter of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks import load_task

TASK = load_task("arc")
PROBLEM = Problem(
    id="train-000000",
    question="Which is a metal?",
    answer="B",
    option_labels=("A", "B", "C"),
    option_texts=("sulfur", "copper", "neon"),
)


def official(labels: str = "ABC", key: str = "B") -> dict[str, Any]:
    choices = [{"text": text, "label": label} for text, label in zip(PROBLEM.option_texts, labels, strict=False)]
    return {"id": "Mercury_1", "question": {"stem": PROBLEM.question, "choices": choices}, "answerKey": key}


def hub(labels: str = "ABC", key: str = "B") -> dict[str, Any]:
    choices = {"text": list(PROBLEM.option_texts), "label": list(labels)}
    return {"id": "Mercury_1", "question": PROBLEM.question, "choices": choices, "answerKey": key}


def load_one(tmp_path: Path, row: object) -> Problem:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    (problem,) = TASK.load(str(path), split="train")
    return problem


def test_prompt_is_the_papers() -> None:
    assert TASK.prompt(PROBLEM) == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're "
        'ready to answer, conclude using the format "Final answer: (insert letter here)"\n'
        "Question: Which is a metal?\n"
        "(A) sulfur\n"
        "(B) copper\n"
        "(C) neon\n"
        "Solution:"
    )


@pytest.mark.parametrize("row", [official(), official("123", "2"), hub(), hub("123", "2")])
def test_every_form_gives_the_same_problem(tmp_path: Path, row: dict[str, Any]) -> None:
    assert load_one(tmp_path, row) == PROBLEM


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([hub(), hub("123", "3")]), tmp_path / "d.parquet")
    problems = TASK.load(str(tmp_path), split="train")
    assert [problem.answer for problem in problems] == ["B", "C"]
    assert problems[0] == PROBLEM


def test_there_is_no_gold_solution() -> None:
    assert TASK.gold_completion(PROBLEM) is None


@pytest.mark.parametrize("count", [3, 4, 5])
def test_three_to_five_options(tmp_path: Path, count: int) -> None:
    row = hub()
    row["choices"] = {"text": [f"option {i}" for i in range(count)], "label": list("12345"[:count])}
    row["answerKey"] = str(count)
    problem = load_one(tmp_path, row)
    assert problem.answer == "ABCDE"[count - 1]
    assert f"({problem.answer}) option {count - 1}\nSolution:" in TASK.prompt(problem)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (hub("ABD"), "has 3 texts and the labels A, B, D"),
        (hub("AB1"), "labels A, B, 1"),
        (hub("ABCD"), "has 3 texts and the labels A, B, C, D"),
        (official("AB"), "has 2 texts"),
        (official(key="D"), "has the 'answerKey' 'D' and the options A, B, C"),
        (official(key=""), "has the 'answerKey' ''"),
        ({"question": "q", "answerKey": "A"}, "has no 'choices'"),
        ({"question": {"choices": []}, "answerKey": "A"}, "in 'question', has no 'stem'"),
        ({"question": "q", "choices": [], "answerKey": "A"}, "has 0 texts and the labels (none)"),
        ({"question": "q", "choices": ["a", "b", "c"], "answerKey": "A"}, "in 'choices', holds a str"),
        ({"question": "q", "choices": "a b c", "answerKey": "A"}, "has a str in 'choices'"),
        ({"question": "q", "choices": {"text": "abc", "label": ["A"]}, "answerKey": "A"}, "has a str in 'text'"),
        ({key: value for key, value in hub().items() if key != "answerKey"}, "has no 'answerKey'"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_one(tmp_path, row)
    assert "d.jsonl:1" in str(caught.value)
    assert message in str(caught.value)


LETTER_B = [
    *("B", "b", "(B)", "(b)", "B.", "B)", "(B).", "[B]", "**B**", "**(B)**", "`B`", '"B"', "$B$", "\\boxed{B}"),
    *("(B) copper", "B) copper", "B. copper", "B: copper", "(B): copper", "(B)copper", "**(B)** copper"),
    *("b) copper", "\\boxed{(B)}", "(B) copper (Cu)", "(B) Vitamin C", "B,"),
]
NO_LETTER = [
    *("", "copper", "B copper", "A dog", "AB", "B C", "(A) or (B)", "A or B", "A, B", "(A), (B)", "A) and B)", "A/B"),
    *("(A) sulfur or (B) copper", "A. and B.", "A.M. hours", "the answer is B", "2", "(2)", "F", "(F) gold", "not (A)"),
]


@pytest.mark.parametrize("answer", LETTER_B)
def test_one_letter_is_read(answer: str) -> None:
    assert TASK.canonical(answer) == "B"
    assert TASK.is_correct(f"Copper conducts.\nFinal answer: {answer}", "B")
    assert not TASK.is_correct(f"Copper conducts.\nFinal answer: {answer}", "C")


@pytest.mark.parametrize("answer", NO_LETTER)
def test_anything_else_is_wrong(answer: str) -> None:
    assert TASK.canonical(answer) is None
    assert not any(TASK.is_correct(f"Final answer: {answer}", gold) for gold in "ABCDE")


@given(answer=st.text(max_size=50))
@settings(deadline=None)
def test_a_letter_is_only_found_in_a_text_that_has_it(answer: str) -> None:
    letter = TASK.canonical(answer)
    assert letter is None or (letter in "ABCDE" and letter in answer.upper())
