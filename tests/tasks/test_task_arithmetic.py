"""Chain arithmetic: answers worked anew here, the shares of the curriculum, and splits that cannot meet."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks import load_task
from irpo_megatron.tasks.arithmetic import ALPHABET, PHRASES

TASK = load_task("arithmetic")
COUNT = 20_000


def result_of(chain: str) -> int:
    """Worked by hand: strip one operation after another from the left."""
    while len(chain) > 1:
        left, operator, right = int(chain[0]), chain[1], int(chain[2])
        table = {"+": (left + right) % 10, "-": (left - right + 10) % 10, "*": (left * right) % 10}
        chain = f"{table[operator]}{chain[3:]}"
    return int(chain)


def letter_of(chain: str) -> str:
    return "H" if result_of(chain) in (5, 6, 7, 8, 9) else "L"


def kind_of(problem: Problem) -> tuple[str, int, int]:
    """(`worked` or `sketch`, steps, slips), after a check that every step goes on from the one before."""
    assert problem.solution is not None
    written, letter = problem.solution.split(";Final answer:")
    steps = written.split(",")
    question = problem.question
    assert len(steps) == len(question) // 2
    current, slips = question[0], 0
    for index, step in enumerate(steps):
        assert step[:4] == f"{current}{question[2 * index + 1 : 2 * index + 3]}="
        current = step[4]
        if current != "?":
            slips += int(current) != result_of(step[:3])
    if current == "?":
        assert written.count("?") == 2 * len(steps) - 1
        return "sketch", len(steps), 0
    assert letter == ("H" if int(current) >= 5 else "L")
    return "worked", len(steps), slips


@pytest.fixture(scope="module")
def demonstrations() -> list[Problem]:
    return TASK.load(f"generate:demonstrations:{COUNT}", split="train")


def test_the_notes_example() -> None:
    problem = Problem(id="train-000000", question="3+4-2*5", answer="H", solution="3+4=7,7-2=5,5*5=5;Final answer:H")
    assert result_of(problem.question) == 5
    assert TASK.prompt(problem) == "3+4-2*5:"
    assert TASK.gold_completion(problem) == problem.solution
    assert TASK.is_correct(problem.solution or "", "H")
    assert kind_of(problem) == ("worked", 3, 0)


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("3+4=?;Final answer:H", True),
        ("Final answer: H", True),
        ("Final answer:L;Final answer:H", True),
        ("Final answer:HL", False),
        ("Final answer:h", False),
        ("Final answer:L", False),
        ("Final answer:", False),
        ("3+4=7;H", False),
    ],
)
def test_the_letter_alone_counts(completion: str, correct: bool) -> None:
    assert TASK.is_correct(completion, "H") is correct


@pytest.mark.parametrize("name", ["train", "held_out", "test"])
def test_worked_splits(name: str) -> None:
    problems = TASK.load(f"generate:{name}:1000", split=name)
    assert len({problem.question for problem in problems}) == 1000
    assert problems[17].id == f"{name}-000017"
    for problem in problems:
        assert problem.answer == letter_of(problem.question)
        assert kind_of(problem)[::2] == ("worked", 0)
        assert TASK.is_correct(problem.solution or "", problem.answer)
    lengths = Counter(len(problem.question) // 2 for problem in problems)
    assert set(lengths) == {2, 3, 4, 5, 6}
    assert all(140 < count < 260 for count in lengths.values())  # 200 expected, 4.7 standard deviations


def test_no_two_splits_share_a_problem(demonstrations: list[Problem]) -> None:
    """Also across seeds and sizes; there are only 9,000 problems of two operations, so a draw would meet."""
    splits = [{problem.question for problem in demonstrations}] + [
        {p.question for seed in (0, 1) for p in TASK.load(f"generate:{name}:4000:{seed}", split=name)}
        for name in ("train", "held_out", "test")
    ]
    assert len(set.union(*splits)) == sum(map(len, splits))


def test_the_curriculum_is_the_demos(demonstrations: list[Problem]) -> None:
    """The shares of the demo's notes, each within about four standard deviations."""
    border = COUNT * 6 // 10
    first = [kind_of(problem) for problem in demonstrations[:border]]
    assert {kind for kind, _, _ in first} == {"worked"}
    steps = sum(count for _, count, _ in first)
    assert sum(slips for _, _, slips in first) / steps == pytest.approx(0.03, abs=0.0033)
    assert Counter(count for _, count, _ in first)[2] / border == pytest.approx(0.2, abs=0.015)

    second = [kind_of(problem) for problem in demonstrations[border:]]
    for operations, share in {2: 0.5, 3: 0.25, 4: 0.12, 5: 0.06, 6: 0.03}.items():
        kinds = [(kind, slips) for kind, count, slips in second if count == operations]
        assert sum(kind == "worked" for kind, _ in kinds) / len(kinds) == pytest.approx(share, abs=0.05)
        assert not any(slips for _, slips in kinds)


def test_half_of_the_sketches_are_right_by_luck(demonstrations: list[Problem]) -> None:
    sketches = [problem for problem in demonstrations if kind_of(problem)[0] == "sketch"]
    right = sum(TASK.is_correct(problem.solution or "", problem.answer) for problem in sketches)
    heads = sum((problem.solution or "").endswith("H") for problem in sketches)
    assert right / len(sketches) == pytest.approx(0.5, abs=0.03)
    assert heads / len(sketches) == pytest.approx(0.5, abs=0.03)


def test_gold_answers_are_true_whatever_the_solution_says(demonstrations: list[Problem]) -> None:
    assert all(problem.answer == letter_of(problem.question) for problem in demonstrations)


def test_sketches_are_as_long_as_worked_completions(demonstrations: list[Problem]) -> None:
    """And the vocabulary and the sequence length are what the notes say."""
    phrase = re.compile("|".join(map(re.escape, PHRASES)))
    lengths: dict[int, set[int]] = {}
    for problem in demonstrations:
        completion = TASK.gold_completion(problem) or ""
        characters, phrases = phrase.subn("", completion)
        assert phrases == 1
        assert set(TASK.prompt(problem) + characters) <= set(ALPHABET)
        lengths.setdefault(len(problem.question), set()).add(len(TASK.prompt(problem) + characters) + phrases)
    assert all(len(each) == 1 for each in lengths.values())
    assert max(max(each) for each in lengths.values()) == 52
    assert len(ALPHABET) == len(set(ALPHABET)) == 20


def test_generation_is_the_same_everywhere() -> None:
    """A fingerprint: other Python versions and later changes must draw the same problems."""
    problems = TASK.load("generate:demonstrations:500:7", split="train") + TASK.load(
        "generate:train:100", split="train"
    )
    text = json.dumps([[problem.question, problem.answer, problem.solution] for problem in problems])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "8a5341d5d82bbeb5"
    assert TASK.load("generate:train:100:0", split="train") == problems[500:]
    assert TASK.load("generate:train:100:1", split="train") != problems[500:]


def test_a_smaller_split_begins_a_larger_one() -> None:
    assert TASK.load("generate:train:50", split="train") == TASK.load("generate:train:100", split="train")[:50]


@pytest.mark.parametrize(
    "source",
    [
        "generate:",
        "generate:train",
        "generate:train:0",
        "generate:train:-5",
        "generate:train:1e3",
        "generate:train:9999999",
        "generate:train:99999999999999",
        "generate:train:10:x",
        "generate:train:10:1:2",
        "generate:dev:10",
    ],
)
def test_bad_generated_sources(source: str) -> None:
    with pytest.raises(UserError, match=r"generate:NAME:COUNT\[:SEED\]"):
        TASK.load(source, split="train")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "3+4-2*5", "answer": "H"}\n{"question": "1*1", "answer": "L", "solution": "s"}\n')
    first, second = TASK.load(str(path), split="test")
    assert first == Problem(id="test-000000", question="3+4-2*5", answer="H")
    assert TASK.gold_completion(first) is None
    assert second.solution == "s"


@pytest.mark.parametrize(
    ("question", "answer"),
    [("3+4-2*5", "L"), ("3+4", "5"), ("3", "L"), ("3/4", "L"), ("33+4", "H"), ("__import__", "H")],
)
def test_bad_records_are_named(tmp_path: Path, question: str, answer: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": question, "answer": answer}))
    with pytest.raises(UserError, match=r"d\.jsonl:1 has the 'question'"):
        TASK.load(str(path), split="train")
