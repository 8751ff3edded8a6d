r"""A normal form for short answers in LaTeX, so that equal answers in different notation become the same text.

In the spirit of the string comparison of Hendrycks et al. (MATH, arXiv 2103.03874), written afresh: it undoes what
typesetting leaves open and knows no algebra. What it treats as the same:

- sizes and spaces (`\left( 1,\, 2 \right)`), `\dfrac` and `\tfrac`, `\le` and `\leq`, `\frac12`, `\sqrt3`, `x^{2}`
- a unit behind a number (`5\text{ cm}`, `5 inches`, `90^\circ`, `10\%`, `\$5`) and the number alone
- the value alone and `x = 5`, `x \in [1,2]`; `(B)`, `\text{B}` and `B`
- `1,000` and `1000`; `.5`, `0.50` and `\frac{1}{2}`; `1/2` and `\frac{1}{2}`

A fraction is not reduced: `\frac{2}{4}` differs from `\frac{1}{2}`, since MATH asks for lowest terms.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 500
"""Longer answers have no normal form; MATH's own are far shorter."""

_TEXT_COMMAND = r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf|textit)\s*"
_TEXT = rf"{_TEXT_COMMAND}\{{([^{{}}]*)\}}"
_UNIT_TEXT = rf"{_TEXT_COMMAND}\{{(?:\s[^{{}}]*|[^{{}}]{{2,}})\}}"  # one bare letter is no unit: `2\mathrm{i}`
_UNIT_WORDS = (
    r"(?:degrees?|percent|dollars?|cents?|units?|square|sq|cubic|inch(?:es)?|in|feet|foot|ft|yards?|miles?|mph|"
    r"mm|cm|km|m|(?:milli|centi|kilo)?met(?:er|re)s?|grams?|kg|pounds?|lit(?:er|re)s?|seconds?|minutes?|hours?|days?|"
    r"weeks?|months?|years?)"
)
_EXPONENT = r"(?:\s*\^\s*\{?\s*[0-9]\s*\}?)?"

# In this order; each is linear in the length but for what backtracks over at most `MAX_CHARACTERS`.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\^\s*(?:\\circ|\\degree|\{\s*(?:\\circ|\\degree)\s*\})|\\degree|°", ""),
        (rf"(?<=\S)\s*{_UNIT_TEXT}{_EXPONENT}\s*\.?\s*$", ""),  # a unit: text at the end that something stands before
        (_TEXT, r"\1"),
        (rf"(?<=[0-9}}])(?:\s+{_UNIT_WORDS}\b{_EXPONENT})+\s*\.?\s*$", ""),
        (r"(?<=[0-9])(?:\{,\}|,\\!)(?=[0-9]{3})", ""),
    )
]
# `(1,200)` is a pair, so a comma counts as a thousands separator only where there is no bracket at all.
_BRACKET = re.compile(r"[(\[]|\\\{")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\S", re.DOTALL)
_DROPPED = {
    *("$", "~", "%", r"\$", r"\%", r"\!", r"\,", r"\;", r"\:", r"\ ", r"\(", r"\)", r"\[", r"\]"),
    *(r"\left", r"\right", r"\big", r"\Big", r"\bigg", r"\Bigg", r"\quad", r"\qquad", r"\displaystyle"),
}
_SYNONYMS = {
    **{r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac"},
    **{r"\le": r"\leq", r"\ge": r"\geq", r"\ne": r"\neq", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\dots": r"\ldots"},
    **{"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": r"\times", "\N{MIDDLE DOT}": r"\cdot", "√": r"\sqrt"},
    **{"π": r"\pi", "∞": r"\infty", "≤": r"\leq", "≥": r"\geq", "\N{UNION}": r"\cup"},
}
_ARGUMENTS = {r"\frac": 2, r"\sqrt": 1, "^": 1, "_": 1}

_NAMED_VALUE = re.compile(r"(?:[A-Za-z]{1,2}(?:_\{\w+\})?(?:\([a-z]\))?|\\[a-z]+)(?:=|\\in(?![a-z]))(?P<value>[^=]+)")
_OPTION = re.compile(r"\(([A-Z])\)")
_SIGNED_FRACTION = re.compile(r"(?<![^(\[{,=])\\frac\{-([^{}+-]+)\}")
_SLASH = re.compile(r"(-?)([0-9]+)/([0-9]+)")
_DECIMAL = re.compile(r"-?(?:[0-9]+\.[0-9]*|\.[0-9]+)")
_BARE_POINT = re.compile(r"(?<![0-9])\.(?=[0-9])")


def normal_form(answer: str) -> str | None:
    """The normal form; None for an empty answer or one of more than `MAX_CHARACTERS`."""
    if len(answer) > MAX_CHARACTERS:
        return None
    text = answer.strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if not _BRACKET.search(text):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    tokens = [_SYNONYMS.get(token, token) for token in _TOKEN.findall(text) if token not in _DROPPED]
    text = _braced(tokens).removesuffix(".")
    if named := _NAMED_VALUE.fullmatch(text):
        text = named["value"]
    return _plain_value(text) or None


def _braced(tokens: list[str]) -> str:
    r"""The tokens with every argument of `\frac`, `\sqrt`, `^` and `_` in braces, as TeX reads them: `\frac12` becomes
    `\frac{1}{2}`.

    Reads from right to left, so that a command finds its arguments complete, each a token or a braced group.
    """
    units: list[str] = []  # what has been read, its leftmost unit last
    for token in reversed(tokens):
        if token == "{":
            group = []
            while units and units[-1] != "}":
                group.append(units.pop())
            units[-1:] = ["{" + "".join(group) + "}"]
        elif token in _ARGUMENTS:
            written = token
            if token == r"\sqrt" and units and units[-1] == "[":  # the degree of the root, `[3]`
                while units and not written.endswith("]"):
                    written += units.pop()
            for argument in [units.pop() for _ in range(min(_ARGUMENTS[token], len(units)))]:
                written += argument if argument.startswith("{") else "{" + argument + "}"
            units.append(written)
        else:
            units.append(token)
    return "".join(reversed(units))


def _plain_value(text: str) -> str:
    """Numbers in one notation where the whole answer is a number; `(B)` as `B`."""
    text = _SIGNED_FRACTION.sub(r"-\\frac{\1}", _BARE_POINT.sub("0.", text))
    if option := _OPTION.fullmatch(text):
        return option[1]
    if slash := _SLASH.fullmatch(text):
        return rf"{slash[1]}\frac{{{slash[2]}}}{{{slash[3]}}}"
    if _DECIMAL.fullmatch(text):
        value = Fraction(text)
        if value.denominator == 1:
            return str(value)
        return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    return text
