"""How often the two gradings of MATH say what a human grader says, on the pairs of `support.math_answer_pairs`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from support.math_answer_pairs import EQUAL, UNEQUAL

from irpo_megatron.tasks import load_task
from irpo_megatron.tasks.verdict import Verdict

# Answers that a human grader accepts and this grading does not, by what it would have to know.
STRICT_REFUSES = {
    # arithmetic
    *(r"\frac{6}{8}", r"\frac{3}{-4}", r"\frac{10}{5}", r"1\frac{1}{2}", r"2\frac{3}{4}", r"\sqrt{12}", r"\sqrt[3]{8}"),
    *(r"2^{10}", r"10^{-2}", r"2 \times 10^3", r"3\cdot 7", "5!", r"\log_2 8", r"\sin 30^\circ", "i^2", "007"),
    *(r"\frac{1}{\sqrt{2}}", r"2^{1/3}", r"0.\overline{3}", "(0.5, 3)"),
    # algebra
    *(r"\frac{x}{2}", r"\frac{1}{1+x}", r"\frac{\pi}{6}", r"\pi/6", r"\frac{\sqrt{3}}{2}", r"1+\sqrt{2}", "1+x"),
    *(r"\sqrt{2} + \sqrt{3}", "2(x+1)", "(x+1)(x-1)", "(x-1)(x+1)", "x^2+2x+1", r"x \cdot y", "a^2 b"),
    *("2x-3", "3i+2"),
    # sets, and brackets that mean nothing
    *(r"\{1,2,3\}", "1, 2", "-1,3", r"(0,1)\cup(2,3)", r"(-\infty,0) \cup (0,\infty)", r"\left(\frac{1}{2}\right)"),
    *(r"\cos x", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
}
MATH_VERIFY_REFUSES = {r"\sin 30^\circ", "i^2", r"0.\overline{3}"}


def test_the_table() -> None:
    assert (len(EQUAL), len(UNEQUAL)) == (120, 80)
    assert len({*EQUAL, *UNEQUAL}) == 200
    assert all(len(answer) <= 500 for pair in EQUAL + UNEQUAL for answer in pair)


@pytest.mark.parametrize(
    ("grading", "refuses", "at_least"),
    [
        ("strict", STRICT_REFUSES, 156),
        pytest.param(
            "math-verify",
            MATH_VERIFY_REFUSES,
            195,
            marks=pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed"),
        ),
    ],
)
def test_agreement_with_a_human_grader(grading: str, refuses: set[str], at_least: int) -> None:
    task = load_task("math", grading=grading)
    refused = {pair for pair in EQUAL if task.verdict(*pair) is not Verdict.RIGHT}
    accepted = {pair for pair in UNEQUAL if task.verdict(*pair) is not Verdict.WRONG}
    assert accepted == set()  # a wrong answer that is accepted teaches the model; a right one that is not costs a pair
    assert {answer for answer, _ in refused} == refuses
    assert 200 - len(refused) - len(accepted) >= at_least


@pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("$5$ or $6$", "5"),
        ("5 or 6", "6"),
        ("5, 6", "6"),
        (r"\boxed{5}\boxed{6}", "5"),
        (r"\{5, 6\}", "5"),
        (r"\pm 5", "5"),
        (r"\neq 5", "5"),
        (r"5 \approx 6", "5"),
        ("not 5", "5"),
        ("121_3", "121_4"),
        ("0.33", r"\frac13"),
        ("123456789012345678901", "123456789012345678902"),
        ("", "5"),
    ],
)
def test_hedging_is_no_answer(answer: str, gold: str) -> None:
    for grading in ("strict", "math-verify"):
        assert not load_task("math", grading=grading).is_correct(f"Final answer: {answer}", gold)
