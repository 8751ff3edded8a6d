r"""What a model must not be able to do to a grader by writing it."""

from __future__ import annotations

import random

SYSTEM = "__import__('os').system('touch escaped')"

SHORT = (
    *("9^9^9^9", "9**9**9**9", "9^{9^{9^{9}}}", "1e999999999", "99999999!!", r"\binom{99999999}{55555555}"),
    *(SYSTEM, f"exec({SYSTEM!r})", "open('escaped','w')", "().__class__.__base__.__subclasses__()", "`touch escaped`"),
    *(r"\input{/etc/passwd}", r"\write18{touch escaped}", "{{7*7}}", "${7*7}", "%s%n", "'; DROP TABLE t;--"),
    *("\0", "5\0", "\ud800", "\udfff5", "\u202e81\u202c", "\u200b5", "\ufeff5", "5\u0661", "½", "²", "五", "\x1b[2J"),
    *(r"\frac{1}{0}", "1/0", "0/0", "nan", "inf", "-inf", r"\infty-\infty", "--5", "+-5", "5e", "0x5", "5_0", "1,,"),
    *("}", "{", "}{", r"\boxed{", r"\boxed", r"\frac", r"\frac{", r"\sqrt[", r"\text{", "\\"),
    *("$", "$$", "$$$", "#", "^", "_"),
    *("Final answer:", "Final answer: Final answer:", "\\boxed{5}}{", "(((((A)))))", "(A)(B)(C)", "H\nL", "HL", ""),
)
"""Fragments to be mixed."""

LONG = (
    "{" * 500_000 + "}" * 500_000,
    "{" * 1_000_000,
    r"\boxed{" * 100_000,
    r"\frac{1}{" * 50_000 + "}" * 50_000,
    r"\sqrt{" * 80 + "2" + "}" * 80,
    r"\left(" * 100_000,
    r"\left(" * 80,
    "(" * 240 + ")" * 240,
    "9" * 100_000,
    "9" * 450,
    "0." + "3" * 100_000,
    "1/" + "7" * 100_000,
    "1," * 100_000,
    "5 in " * 20_000,
    "5" + " " * 490 + "x",
    "5" + r"\text{ }" * 60 + "x",
    "-" * 200_000,
    "$" * 200_000,
    r"$\$" * 60_000,
    "*" * 200_000,
    " " * 1_000_000,
    "\n" * 1_000_000,
    "A" + ")" * 200_000,
    "(A) " + "and " * 50_000,
    "\ud800" * 100_000,
    "\u202e" * 100_000,
    r"\begin{array}{c}" + r"1 & 2 \\" * 20_000 + r"\end{array}",
    r"\begin{pmatrix}" + r"1&2\\" * 80 + r"\end{pmatrix}",
    "+".join("x" * 200),
    "x=" * 200_000,
    "Final answer: " * 50_000,
    "5\n" * 200_000,
)
"""Completions by their size and shape."""


def mixed(rng: random.Random) -> str:
    """A completion of a few fragments, mostly behind the marker of a final answer."""
    text = rng.choice(("", " ", "\n")).join(rng.choices(SHORT, k=rng.randint(1, 5)))
    return rng.choice(("{}", "Final answer: {}", "Final answer: ${}$", "\\boxed{{{}}}")).format(text)
