"""Lines over steps or iterations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irpo_megatron.report.svg import colour, draw, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: its points in order; a y that is NaN breaks it."""

    label: str
    hue: str
    x: Sequence[float]
    y: Sequence[float]
    dash: str = "-"
    marker: str = ""
    band: Sequence[tuple[float, float]] = ()
    """Lower and upper bound at each point, drawn as a pale area."""
    bars: Sequence[tuple[float, float]] = ()
    """Lower and upper bound at each point, drawn as an upright."""
    ring: bool = False
    """Draw the marker as a ring around the point below it."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The frame around the lines."""

    x_label: str
    y_label: str
    starts: Sequence[float] = ()
    """x at which an iteration starts, marked by a thin upright."""
    level: tuple[float, str] | None = None
    """A value to compare with, and its name."""
    y_within: tuple[float, float] | None = None
    """y never shows more than this range."""


def line_chart(name: str, title: str, axis: Axis, lines: Sequence[Line], *, height: int = 250) -> str:
    """The lines as inline SVG."""

    def plot(axes: Axes) -> None:
        for above, line in enumerate(reversed(lines)):
            _plot_line(axes, line, layer=3 + above)
        _plot_frame(axes, axis)
        legend_above(axes, columns=2 if len(lines) > 3 else 3, order=[line.label for line in lines])

    return draw(name, title, height, plot)


def _plot_line(axes: Axes, line: Line, layer: int) -> None:
    hue = colour(line.hue)
    if line.band:
        low, high = zip(*line.band, strict=True)
        axes.fill_between(line.x, low, high, color=hue, alpha=0.16, linewidth=0)
    if line.bars:
        low, high = zip(*line.bars, strict=True)
        axes.vlines(line.x, low, high, color=hue, alpha=0.45, linewidth=1.2)
    ring: dict[str, Any] = {"markersize": 8.5, "markerfacecolor": "none"} if line.ring else {}
    style = {"linestyle": line.dash, "marker": line.marker, "color": hue, "zorder": layer, **ring}
    axes.plot(line.x, line.y, label=line.label, **style)


def _plot_frame(axes: Axes, axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_xlabel(axis.x_label)
    axes.set_ylabel(axis.y_label)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    if axis.level is not None:
        value, label = axis.level
        axes.axhline(value, color=colour("muted"), linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            label,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=colour("muted"),
        )
    for start in axis.starts:
        axes.axvline(start, color=colour("grid"), linewidth=1)
    if axis.y_within is not None:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, axis.y_within[0]), min(high, axis.y_within[1]))


def broken(segments: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], list[float]]:
    """Several (x, y) stretches as one line with gaps between them."""
    xs: list[float] = []
    ys: list[float] = []
    for x, y in segments:
        if xs:
            xs.append(math.nan)
            ys.append(math.nan)
        xs.extend(x)
        ys.extend(y)
    return xs, ys
