r"""Where the final answer stands in a text: after `Final answer:`, in `\boxed{...}`, or between math delimiters.

Each function reads its text once, from end to end, so that a long completion costs time in proportion to its length.
"""

from __future__ import annotations

import re

MARKER = "Final answer:"
"""The phrase that every prompt of the paper asks for (appendix with the prompts)."""


def final_answer(completion: str) -> str | None:
    """The text after the last marker, up to the end of its line; None where there is none.

    Asterisks at either end go with the white space: chat models write `**Final answer:** 18`.
    """
    _, marker, tail = completion.rpartition(MARKER)
    if not marker:
        return None
    return tail.split("\n", 1)[0].strip("* \t\r\f\v") or None


# A backslash with its character is one token, so that `\{` is no brace and the second half of `\\` opens no command.
_BOX_TOKEN = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)\s+(?P<bare>[^\s{}$\\]+)|\\.|(?P<brace>[{}])",
    re.DOTALL,
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces balance; None where there is none.

    Of nested boxes the inner one begins last and wins. `\boxed 5`, without braces, occurs in MATH and is read too.
    """
    open_braces: list[tuple[bool, int]] = []  # (opened by a box, where its content begins)
    last: tuple[int, int] = (-1, -1)  # a box's content begins at 6 at the earliest, so this precedes any
    for token in _BOX_TOKEN.finditer(text):
        if token["box"]:
            open_braces.append((True, token.end()))
        elif token["bare"]:
            last = max(last, token.span("bare"))
        elif token["brace"] == "{":
            open_braces.append((False, token.end()))
        elif token["brace"] and open_braces:
            is_box, start = open_braces.pop()
            if is_box:
                last = max(last, (start, token.start()))
    start, end = last
    return (text[start:end].strip() or None) if start >= 0 else None


# A dollar sign counts as a delimiter under the rule that Pandoc made common: the opening one stands before, and the
# closing one behind, something that is no space, and no digit follows the closing one. So `$5 and $6` stays money.
_DELIMITED = re.compile(r"(?<![\\$])\$(?!\s)((?:[^$\\]|\\.)+?)(?<!\s)\$(?!\d)")
_OTHER_DELIMITERS = re.compile(r"\\[(\[]\s*|(?<!\s)\s*\\[)\]]|\$\$")


def unwrap(answer: str) -> str:
    r"""The formula in an answer that wraps it: `the answer is $\boxed{5}$.` gives `5`, `$x$ meters` gives `x`.

    An answer with several formulas is returned as it is, as no one of them is the answer.
    """
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed
    formulas = _DELIMITED.findall(_OTHER_DELIMITERS.sub("$", answer))
    return formulas[0].strip() if len(formulas) == 1 else answer
