"""GSM8K: the paper's prompt, the rewritten solutions, and the real files where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks import load_task

TASK = load_task("gsm8k")
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k"
NATALIA = {
    "question": "How many clips did Natalia sell altogether?",
    "answer": "In May 48/2 = <<48/2=24>>24.\nIn all 1000+24 = $<<1000+24=1024>>1,024.\n#### 1,024",
}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompt_is_the_papers() -> None:
    assert TASK.prompt(Problem(id="train-000000", question="What is {1 + 1}?", answer="2")) == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're "
        'ready to answer, please use the format "Final answer: ..."\n'
        "Question: What is {1 + 1}?\n"
        "Solution:"
    )


def test_load_rewrites_the_solution(tmp_path: Path) -> None:
    (problem,) = TASK.load(write(tmp_path / "train.jsonl", NATALIA), split="train")
    assert problem == Problem(
        id="train-000000",
        question=NATALIA["question"],
        answer="1,024",
        solution="In May 48/2 = 24.\nIn all 1000+24 = $1,024.\nFinal answer: 1,024",
    )
    assert TASK.gold_completion(problem) == f" {problem.solution}"
    assert TASK.gold_completion(Problem(id="x", question="q", answer="1")) is None


def test_a_bare_answer_has_a_bare_solution(tmp_path: Path) -> None:
    (problem,) = TASK.load(write(tmp_path / "d.jsonl", {"question": "q", "answer": "#### 5"}), split="test")
    assert (problem.id, problem.solution) == ("test-000000", "Final answer: 5")


@pytest.mark.parametrize("answer", ["18", "18 dollars", "####", "#### eighteen", "#### 3 or 4"])
def test_a_record_without_gold_answer_is_named(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "d.jsonl", NATALIA, {"question": "q", "answer": answer})
    with pytest.raises(UserError, match=r"d\.jsonl:2 has an 'answer' that ends in"):
        TASK.load(path, split="train")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"d\.jsonl:1 has no 'answer'; it has the columns 'problem', 'solution'"):
        TASK.load(write(tmp_path / "d.jsonl", {"problem": "p", "solution": "s"}), split="train")


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        (" 9 + 9 = 18.\nFinal answer: 18", True),
        ("Final answer: $18.00", True),
        ("Final answer: 18 dollars.", True),
        ("Final answer: $\\boxed{18}$", True),
        ("Final answer: \\boxed{\\$18} dollars", True),
        ("Final answer: 5\nFinal answer: 18", True),
        ("Final answer: 18\nFinal answer: 5", False),
        ("Final answer: 118", False),
        ("Final answer: -18", False),
        ("Final answer: 1.8", False),
        ("Final answer: 18 or 19", False),
        ("Final answer: eighteen", False),
        ("Final answer:\n18", False),
        ("The answer is 18", False),
        ("#### 18", False),
        ("", False),
    ],
)
def test_grading(completion: str, correct: bool) -> None:
    assert TASK.is_correct(completion, "18") is correct


def test_equal_answers_share_a_canonical_form() -> None:
    assert {TASK.canonical(answer) for answer in ("1,024", "$1024.00", "1024 clips", "\\boxed{1024}")} == {"1024"}


@pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K files are not here")
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_gold_solution_is_right_and_wrong_once_its_number_changes(split: str, count: int) -> None:
    problems = TASK.load(str(DATA / f"{split}.jsonl"), split=split)
    assert len(problems) == count
    assert problems[-1].id == f"{split}-{count - 1:06d}"
    for problem in problems:
        completion = TASK.gold_completion(problem)
        assert completion is not None
        assert "<<" not in completion
        assert "####" not in completion
        assert TASK.is_correct(completion, problem.answer)
        for wrong in (int(problem.answer.replace(",", "")) + 1, f"1{problem.answer}", f"-{problem.answer}.5"):
            assert not TASK.is_correct(f"{completion.removesuffix(problem.answer)}{wrong}", problem.answer)
