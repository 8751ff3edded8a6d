r"""`normal_form`: pairs of answers checked by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.tasks.latex import MAX_CHARACTERS, normal_form

EQUAL = [
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"\tfrac12", r"\frac{1}{2}"),
    (r"\frac 1 2", r"\frac{1}{2}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    (r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"),
    (r"\frac{\frac12}3", r"\frac{\frac{1}{2}}{3}"),
    ("1/2", r"\frac{1}{2}"),
    ("-1/2", r"-\frac{1}{2}"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    (r"(\frac{-1}{2}, 3)", r"\left(-\frac12, 3\right)"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"2\sqrt 3", r"2\sqrt{3}"),
    (r"\sqrt[3]2", r"\sqrt[3]{2}"),
    ("√3", r"\sqrt{3}"),
    ("x^2", "x^{2}"),
    ("a_1", "a_{1}"),
    ("2516_8", "2516_{8}"),
    (r"x^\frac12", r"x^{\frac{1}{2}}"),
    ("0.5", ".5"),
    ("0.5", r"\frac{1}{2}"),
    ("-.25", r"-\frac14"),
    ("0.50", "0.5"),
    ("5.0", "5"),
    ("-5.", "-5"),
    ("3.14", r"\frac{157}{50}"),
    ("1,000", "1000"),
    (r"1,\!000,\!000", "1000000"),
    ("12{,}345", "12345"),
    (r"\$1,000.50", "1000.5"),
    (r"\$18", "18"),
    ("$18$", "18"),
    (r"10\%", "10"),
    ("10%", "10"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    ("90°", "90"),
    ("90 degrees", "90"),
    (r"5\text{ cm}", "5"),
    (r"5 \text{ cm}^2", "5"),
    (r"5\mbox{ inches}", "5"),
    (r"\frac{1}{2}\text{ hour}", r"\frac12"),
    ("5 square inches", "5"),
    ("5 cm^2", "5"),
    (r"\text{Monday}", "Monday"),
    (r"\text{(B)}", "B"),
    ("(B)", r"\textbf{B}"),
    ("x=5", "5"),
    ("x = 5", "5"),
    (r"y=2x+3", "2x+3"),
    ("f(x) = x^2", "x^2"),
    (r"\theta = \pi", "π"),
    (r"x \in [1,2]", "[1,2]"),
    ("5.", "5"),
    ("$5$.", "5"),
    (r"\left( 1,\, 2 \right)", "(1,2)"),
    (r"\left[1,2\right)", "[1,2)"),
    (r"\{1, 2\}", r"\left\{1,2\right\}"),
    (r"x \le 3", r"x\leq 3"),
    (r"(-∞, 2]", r"(-\infty,2]"),
    ("\N{MINUS SIGN}3", "-3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"3 \times 10^5", "3 \N{MULTIPLICATION SIGN} 10^{5}"),
    ("no solution", r"\text{no solution}"),
]

UNEQUAL = [
    ("18", "118"),
    ("18", "1.8"),
    ("5", "-5"),
    ("5", "5x"),
    ("2", r"2\pi"),
    ("2", "2 pi"),
    ("3", r"\sqrt{3}"),
    (r"\frac12", "12"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    (r"\frac{1}{2}", r"\frac{2}{4}"),
    (r"\frac{1}{3}", "0.333"),
    ("x^{12}", "x^12"),
    ("x^2", "x2"),
    ("(1,200)", "1200"),
    ("(1,200)", "(1200)"),
    (r"\{1,200\}", r"\{1200\}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("[1,2)", "[1,2]"),
    ("1,2", "12"),
    ("1,2,3", "123"),
    (r"3+2\mathrm{i}", "3+2"),
    ("3+2i", "3+2"),
    (r"2\frac{-1}{2}", r"2-\frac{1}{2}"),
    (r"\text{Monday}", r"\text{Sunday}"),
    ("A", "B"),
    ("x=5", "x=6"),
    ("x=1, y=2", "2"),
    ("x \\neq 5", "5"),
    (r"x \le 3", r"x \ge 3"),
    (r"x \le 3", "3"),
    ("121_3", "121"),
    (r"121_{\text{three}}", "121"),
    (r"\infty", r"-\infty"),
    (r"\sqrt[3]{2}", r"\sqrt{2}"),
    ("1 or 2", "1"),
    (r"1 \text{ or } 2", "1"),
]


def test_there_are_enough_pairs() -> None:
    assert len(EQUAL) >= 40
    assert len(UNEQUAL) >= 25


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal(one: str, other: str) -> None:
    assert normal_form(one) == normal_form(other) is not None


@pytest.mark.parametrize(("one", "other"), UNEQUAL)
def test_unequal(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


@pytest.mark.parametrize("answer", ["", "  ", "$", r"\left", ".", "x" * (MAX_CHARACTERS + 1)])
def test_nothing_to_compare(answer: str) -> None:
    assert normal_form(answer) is None


PIECES = [
    r"\frac",
    r"\sqrt",
    "{",
    "}",
    "^",
    "_",
    "[",
    r"\text{",
    "1,",
    "0",
    " ",
    ".",
    "$",
    "\\",
    r"\text{a}",
    " cm",
    "(",
    "x=",
]


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_answers_are_bounded(piece: str) -> None:
    began = time.process_time()
    normal_form((piece * MAX_CHARACTERS)[:MAX_CHARACTERS])
    normal_form(piece * 100_000)
    assert time.process_time() - began < 2


@given(st.lists(st.sampled_from([*PIECES, "1", "2", "x", "+", "-", r"\pi", ","]), max_size=40).map("".join))
@settings(deadline=None)
def test_no_answer_raises(answer: str) -> None:
    assert normal_form(answer) != ""


@given(one=st.integers(-(10**9), 10**9), other=st.integers(-(10**9), 10**9))
@settings(deadline=None)
def test_integers_meet_only_their_equals(one: int, other: int) -> None:
    assert normal_form(f"{one:,}") == normal_form(str(one)) == normal_form(f"${one}.00$") == str(one)
    assert (normal_form(f"{one:,}") == normal_form(str(other))) == (one == other)
