"""How numbers are written in the report."""

from __future__ import annotations

EN_DASH = "\u2013"
MINUS = "\u2212"
ABSENT = EN_DASH
"""Stands in a table where there is no number."""


def percent(share: float | None) -> str:
    """0.6523 as `65.2`."""
    return ABSENT if share is None else f"{100 * share:.1f}"


def interval(bounds: list[float] | None) -> str:
    """[0.622, 0.681] as `62.2-68.1`, with an en dash."""
    return ABSENT if bounds is None else f"{percent(bounds[0])}{EN_DASH}{percent(bounds[1])}"


def points(difference: float) -> str:
    """0.459 as `+45.9`."""
    return signed(100 * difference, digits=1)


def signed(value: float | None, *, digits: int) -> str:
    """With its sign, also when positive."""
    return ABSENT if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def number(value: float | None, *, digits: int) -> str:
    """With a true minus sign, which is as wide as a digit."""
    return ABSENT if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def count(value: int | None) -> str:
    """1234567 as `1,234,567`."""
    return ABSENT if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `12 min 5 s` or `3 h 12 min`."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def listing(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
