"""Where the final answer stands: the marker, the box, the math delimiters."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.tasks.extraction import MARKER, final_answer, last_boxed, unwrap


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Final answer: 18", "18"),
        ("So it is 3.\nFinal answer:18\n", "18"),
        ("Final answer: 3\nNo, wait.\nFinal answer: 18 dollars\r\nQuestion: another", "18 dollars"),
        ("the Final answer: 3 Final answer: 4", "4"),
        ("**Final answer:** 18", "18"),
        ("**Final answer: 18**", "18"),
        ("Final answer:", None),
        ("Final answer: ** \n18", None),
        ("Final answer: 3\nFinal answer:", None),
        ("final answer: 18", None),
        ("The answer is 18.", None),
        ("", None),
    ],
)
def test_final_answer(completion: str, answer: str | None) -> None:
    assert final_answer(completion) == answer


ONE_LINE = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="*"), min_size=1)


@given(before=st.text(), answer=ONE_LINE, after=st.text())
@settings(deadline=None)
def test_the_text_after_the_last_marker(before: str, answer: str, after: str) -> None:
    if MARKER not in answer and MARKER not in after:
        assert final_answer(f"{before}{MARKER} {answer}\n{after}") == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{3} and then \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{3}, no, $\boxed 5$", "5"),
        (r"\boxed{3 \boxed{5}}", "5"),
        (r"\boxed{\left\{1,2\right)}", r"\left\{1,2\right)"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"} \boxed{5}", "5"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{}", None),
        (r"\boxed{5", None),
        (r"\\boxed{5}", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("answer", "formula"),
    [
        ("5", "5"),
        ("$5$", "5"),
        ("$$5$$", "5"),
        (r"\(5\)", "5"),
        (r"\[ 5 \]", "5"),
        ("The answer is $x^2$.", "x^2"),
        ("$5$ meters", "5"),
        (r"$\$5$", r"\$5"),
        (r"$\boxed{5}$ meters", "5"),
        ("$5", "$5"),
        ("$5 and $6", "$5 and $6"),
        ("$5-$10", "$5-$10"),
        ("$3$ and $5$", "$3$ and $5$"),
    ],
)
def test_unwrap(answer: str, formula: str) -> None:
    assert unwrap(answer) == formula


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "}", "\\boxed{1}", "\\boxed ", "$", "$x", "\\", "\\(", "Final answer:"]
)
def test_hostile_text_costs_linear_time(piece: str) -> None:
    text = piece * 50_000
    began = time.process_time()
    final_answer(text), last_boxed(text), unwrap(text)
    assert time.process_time() - began < 5
