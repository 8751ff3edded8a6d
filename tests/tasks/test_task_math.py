r"""MATH: the four-shot prompt, extraction, gold answers from solutions, and the grading by math-verify."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks import load_task, math_verify_client, math_verify_helper
from irpo_megatron.tasks.extraction import last_boxed
from irpo_megatron.tasks.helper_process import HelperProcess
from irpo_megatron.tasks.limits import Limits
from irpo_megatron.tasks.math_examples import EXAMPLES
from irpo_megatron.tasks.verdict import Judgement, Verdict

TASK = load_task("math")
ROW = {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "level": "Level 1", "type": "Prealgebra"}


def load_one(tmp_path: Path, row: object) -> Problem:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    (problem,) = TASK.load(str(path), split="train")
    return problem


def test_prompt_is_the_papers_with_four_examples() -> None:
    prompt = TASK.prompt(Problem(id="train-000000", question="What is {x}?", answer="2"))
    lines = prompt.split("\n")
    assert lines[0] == (
        "Your task is to answer the last question below. Give step by step reasoning before you answer, and when "
        "you're ready to answer, please wrap your answer in \\boxed, and conclude using the format "
        '"Final answer: ..."'
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["Question", "Solution", "Final answer"] * 4 + [
        "Question",
        "Solution",
    ]
    assert prompt.endswith("\nQuestion: What is {x}?\nSolution:")


def test_the_examples_answers_are_those_in_their_boxes() -> None:
    assert len(EXAMPLES) == 4
    for question, solution, answer in EXAMPLES:
        assert last_boxed(solution) == answer
        assert "\n" not in question + solution + answer
        assert TASK.is_correct(f" {solution}\nFinal answer: {answer}", answer)


def test_the_examples_answers_are_right() -> None:
    assert [answer for _, _, answer in EXAMPLES] == ["64", "9", "2", r"\frac{1}{9}"]
    assert 3 * 8 + 7 == 5 * 8 - 9
    assert pow(7, 50, 10) == 9
    assert 5 * 12 / (5 + 12 + 13) == 2
    assert 9 * sum(a + b == 9 for a in range(1, 7) for b in range(1, 7)) == 36


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so $\\boxed{5}$.\nFinal answer: 7", "7"),
        ("Final answer: $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("Final answer: $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("Final answer: The answer is $5$.", "5"),
        ("so $\\boxed{3}$, then $\\boxed{5}$.", "5"),
        ("so $\\boxed{5}$.\nFinal answer:", "5"),
        ("Final answer:\n$\\boxed{5}$", "5"),
        ("it is 5", None),
        ("it is \\boxed{5", None),
        ("Final answer: ", None),
        ("", None),
    ],
)
def test_extraction(completion: str, answer: str | None) -> None:
    assert TASK.extract_answer(completion) == answer


def test_load(tmp_path: Path) -> None:
    problem = load_one(tmp_path, ROW)
    assert problem == Problem(
        id="train-000000",
        question="What is $1+1$?",
        answer="2",
        solution="It is $\\boxed{2}$.\nFinal answer: 2",
    )
    completion = TASK.gold_completion(problem)
    assert completion == " It is $\\boxed{2}$.\nFinal answer: 2"
    assert TASK.is_correct(completion, problem.answer)


def test_load_with_an_answer_column(tmp_path: Path) -> None:
    assert load_one(tmp_path, {**ROW, "solution": "No box.", "answer": "3"}).answer == "3"
    assert load_one(tmp_path, {**ROW, "answer": ""}).answer == "2"  # an empty column is no answer: the box counts
    problem = load_one(tmp_path, {"problem": "p", "answer": "3"})
    assert (problem.answer, problem.solution, TASK.gold_completion(problem)) == ("3", None, None)


def test_a_gold_answer_stands_on_one_line(tmp_path: Path) -> None:
    problem = load_one(tmp_path, {**ROW, "solution": "\\boxed{\\begin{pmatrix}\n1 \\\\ 2\n\\end{pmatrix}}"})
    assert problem.answer == "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"
    assert TASK.is_correct(TASK.gold_completion(problem) or "", problem.answer)


def test_the_original_release_has_a_file_a_problem(tmp_path: Path) -> None:
    for name in ("geometry/7.json", "algebra/12.json", "algebra/1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({**ROW, "problem": name}))
    problems = TASK.load(str(tmp_path), split="train")
    assert [(p.id, p.question) for p in problems] == [
        ("train-000000", "algebra/1.json"),
        ("train-000001", "algebra/12.json"),
        ("train-000002", "geometry/7.json"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "solution": "It is 2."}, "has a 'solution' that ends in 'It is 2.'"),
        ({**ROW, "solution": "\\boxed{2"}, "has a 'solution' that ends in"),
        ({**ROW, "solution": f"\\boxed{{{'x' * 501}}}"}, "has a 'solution' that ends in"),
        ({"problem": "p"}, "has no 'solution'"),
        ({"solution": "\\boxed{2}"}, "has no 'problem'"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_one(tmp_path, row)
    assert "d.jsonl:1" in str(caught.value)
    assert message in str(caught.value)


def test_strict_knows_no_algebra() -> None:
    assert TASK.is_correct("Final answer: $x+1$", "x + 1")
    assert not TASK.is_correct("Final answer: $1+x$", "x+1")


@pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
class TestMathVerify:
    """The real package, in its helper process."""

    @pytest.mark.parametrize(
        ("answer", "gold", "equal"),
        [
            ("1+x", "x+1", True),
            (r"\frac{2}{4}", r"\frac12", True),
            (r"\{2,1\}", r"\{1,2\}", True),
            ("(0.5, 2)", r"(\frac12, 2)", True),
            (r"2\sqrt{2}", r"\sqrt{8}", True),
            ("x=5", "5", True),
            (r"\text{B}", "B", True),
            ("118", "18", False),
            ("x+2", "x+1", False),
            ("(1,2)", "(2,1)", False),
            (r"\text{A}", "B", False),
            ("}{\\frac", "5", False),
        ],
    )
    def test_pairs(self, answer: str, gold: str, equal: bool) -> None:
        task = load_task("math", grading="math-verify")
        assert task.is_correct(f"Final answer: {answer}", gold) is equal

    @pytest.mark.parametrize("answer", ["9^{9^{9}}", r"\binom{99999999}{55555555}"])
    def test_an_answer_that_hangs_sympy_is_ungraded_and_the_next_is_graded(
        self, answer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        helper = HelperProcess("irpo_megatron.tasks.math_verify_helper", limits=Limits(cpu_seconds=0.5))
        monkeypatch.setattr(math_verify_client, "_helper_of", lambda pid: helper)
        task = load_task("math", grading="math-verify")
        assert task.judge(f"Final answer: {answer}", "5") == Judgement(answer, Verdict.UNGRADED)
        assert not task.is_correct(f"Final answer: {answer}", "5")
        assert task.judge("Final answer: 1+x", "x+1") == Judgement("1+x", Verdict.RIGHT)
        helper.close()

    def test_what_the_package_fails_over_is_ungraded(self) -> None:
        assert math_verify_client.verified_equal(r"\frac{1}{0}", r"\frac{2}{0}") is Verdict.UNGRADED

    def test_the_helper_in_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for confinement in ("limit_memory", "stay_inside"):
            monkeypatch.setattr(math_verify_helper, confinement, lambda *_: None)
        reply = math_verify_helper.prepare(Limits(), [])
        assert reply({"answer": "0.5", "gold": r"\frac12"}) == {"equal": True}
        assert reply({"answer": "$3$", "gold": "$4$"}) == {"equal": False}
        assert reply({"answer": r"\frac{1}{0}", "gold": r"\frac{2}{0}"}) == {"equal": None}
        monkeypatch.setattr(math_verify_helper, "peak_mib", lambda: 1e9)
        with pytest.raises(MemoryError):
            reply({"answer": "3", "gold": "4"})

    def test_long_answers_are_not_asked_about(self) -> None:
        assert math_verify_client.verified_equal("1+" * 300 + "x", "x") is Verdict.WRONG


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "irpo-megatron\[math\]"'):
        load_task("math", grading="math-verify")
