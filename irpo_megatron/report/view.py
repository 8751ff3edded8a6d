"""What a section hands to the template: plain text, charts and tables. The template escapes all but the charts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under headings; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    """Whether the cells after the first are numbers, set flush right."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart and the sentence below it."""

    svg: str
    """Markup that this package drew: it goes into the page unescaped, so no text of a model may be in it."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
