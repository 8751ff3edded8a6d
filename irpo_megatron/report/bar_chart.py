"""Stacked bars: what a whole is made of, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irpo_megatron.report.svg import colour, draw, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Part:
    """One colour of the stack: its size in each bar."""

    label: str
    hue: str
    values: Sequence[float]


def stacked_columns(name: str, title: str, bars: Sequence[str], parts: Sequence[Part], *, unit: str) -> str:
    """Upright bars as inline SVG."""

    def plot(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter

        floor = [0.0] * len(bars)
        for part in parts:
            axes.bar(bars, part.values, bottom=floor, width=0.62, label=part.label, **_fill(part))
            floor = [low + value for low, value in zip(floor, part.values, strict=True)]
        axes.set_xlabel("iteration")
        axes.set_ylabel(unit)
        axes.grid(visible=False, axis="x")
        axes.set_xlim(-0.7, max(len(bars) - 0.3, 2.7))  # a bar of its own must not fill the chart
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        legend_above(axes, columns=3 if len(parts) == 3 else 2, order=[part.label for part in parts])

    return draw(name, title, 250, plot)


def stacked_rows(name: str, title: str, bars: Sequence[str], parts: Sequence[Part], *, unit: str) -> str:
    """Lying bars as inline SVG, the first on top."""

    def plot(axes: Axes) -> None:
        from matplotlib.ticker import StrMethodFormatter

        left = [0.0] * len(bars)
        for part in parts:
            axes.barh(bars, part.values, left=left, height=0.62, label=part.label, **_fill(part))
            left = [start + value for start, value in zip(left, part.values, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.grid(visible=False, axis="y")
        legend_above(axes, columns=3, order=[part.label for part in parts])

    return draw(name, title, 100 + 28 * len(bars), plot)


def _fill(part: Part) -> dict[str, Any]:
    """A stroke in the colour of the page keeps neighbours apart, also for eyes that see no hue."""
    return {"color": colour(part.hue), "edgecolor": colour("page"), "linewidth": 0.8}
