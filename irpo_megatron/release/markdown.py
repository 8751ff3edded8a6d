"""Text as Markdown that says that text and nothing else, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = re.compile(r"([\\`*_\[\]<>|#~&!$])")
_NOT_ON_A_LINE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+")


class Markdown(str):
    """Text that is Markdown already; the template takes all other text for plain text."""


def plain(value: object) -> Markdown:
    """One line of text, its signs escaped; Markdown stays as it is."""
    return value if isinstance(value, Markdown) else Markdown(_SIGNS.sub(r"\\\1", one_line(str(value))))


def code(text: str) -> Markdown:
    """A code span, in which nothing but the text counts: for all that comes from a configuration or a folder."""
    text = one_line(text) or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def block(text: str, language: str) -> Markdown:
    """A fenced block of our own text: a prompt, a program."""
    assert not re.search(r"^\s*```", text, re.MULTILINE), "a line of it would end the block"
    return Markdown(f"```{language}\n{text}\n```")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: bool) -> Markdown:
    """A table; the columns after the first are flush right where they hold numbers."""
    ruler = ["---", *("---:" if numeric else "---" for _ in columns[1:])]
    lines = [columns, ruler, *([_cell(cell) for cell in row] for row in rows)]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _cell(value: object) -> str:
    """`|` ends a cell even in a code span, unless it is escaped; elsewhere in a code span the backslash would show."""
    return re.sub(r"(?<!\\)\|", r"\|", plain(value))


def one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return _NOT_ON_A_LINE.sub(" ", text).strip()
