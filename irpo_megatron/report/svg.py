"""Charts as SVG that belongs to the page: its fonts, its colours in light and dark, the same bytes every time.

matplotlib draws with placeholder colours; `draw` turns those into CSS variables, which the style sheet defines twice.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 400
"""Of every chart, in CSS pixels before scaling: about a phone's width, so that letters keep their size there."""
FONT_SIZE = 10.5

HUES = ("blue", "orange", "green", "purple", "red", "teal", "amber", "pink", "grey")
_NAMES = ("ink", "muted", "grid", "page", *HUES)
_PLACEHOLDERS = {name: f"#fe{index:02x}01" for index, name in enumerate(_NAMES)}


def colour(name: str) -> str:
    """What to tell matplotlib to get the page's colour of this name."""
    return _PLACEHOLDERS[name]


def draw(name: str, title: str, height: int, plot: Callable[[Axes], None]) -> str:
    """An `<svg>` element of `WIDTH` by `height`, drawn by `plot` on empty axes.

    Args:
        name: Unique on the page: the ids inside the element derive from it.
        title: What a screen reader says instead of the picture.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style must not leak into the report
        style: Any = _style(name)  # newer stubs want the names as literals, older ones as strings
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        plot(figure.add_subplot())
        buffer = io.StringIO()
        # Without these four there is no metadata element, hence no date and no version in the page.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _as_inline(buffer.getvalue(), title)


def _style(name: str) -> dict[str, Any]:
    ink, muted, grid = colour("ink"), colour("muted"), colour("grid")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": FONT_SIZE,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.labelsize": FONT_SIZE,
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.borderaxespad": 0,
        "legend.borderpad": 0.2,
        "legend.handlelength": 1.6,
        "legend.handletextpad": 0.6,
        "legend.columnspacing": 1.2,
        "lines.linewidth": 1.5,
        "lines.markersize": 4.2,
        "axes.unicode_minus": True,
    }


def legend_above(axes: Axes, columns: int, order: Sequence[str]) -> None:
    """The legend over the plot, from its left edge, where it covers no data; its entries read row by row."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    # matplotlib fills column by column.
    filled = [label for column in range(columns) for label in order[column::columns]]
    axes.legend(
        [handles[label] for label in filled], filled, loc="lower left", bbox_to_anchor=(0.0, 1.03), ncols=columns
    )


def _as_inline(document: str, title: str) -> str:
    """An SVG document as an element of an HTML page."""
    root = ElementTree.fromstring(document)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): _for_page(value) for key, value in element.attrib.items()}
        if element.tag == "g":
            attributes.pop("id", None)  # matplotlib gives every chart the same ones; nothing refers to them
        element.attrib = attributes
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": title}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """A name without its XML namespace, which HTML does not write."""
    return name.rpartition("}")[2]


def _for_page(value: str) -> str:
    for name, placeholder in _PLACEHOLDERS.items():
        value = value.replace(placeholder, f"var(--{name})")
    # A hundredth of a pixel is enough, and digits behind it may differ between processors.
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", value)
