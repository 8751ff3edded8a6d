"""The optimizer's steps: log-probabilities, margin, loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from irpo_megatron.report.curves import Curves, curves_of, values
from irpo_megatron.report.line_chart import Axis, Line, line_chart
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.view import Figure, Section, Table
from irpo_megatron.report.wording import listing, number, signed

HEALTH = (
    "The log-probability of the chosen completions is the health signal, not the margin: in the paper it falls where "
    "the NLL term is left out and rises with it, while the margin grows in every case."
)


def training_section(run: Run) -> Section:
    """Curves over the steps of all iterations, and where each iteration began and ended."""
    curves = curves_of(run.iterations)
    if not curves.iterations:
        return Section(anchor="training", title="Training", paragraphs=("No training stage is complete yet.",))
    with_dpo = curves.line("dpo") is not None
    figures = [_log_probs(curves), _loss(curves) if with_dpo else _nll(curves)]
    paragraphs = [f"{HEALTH} {_health(curves.iterations)}"]
    if with_dpo:
        figures.append(_single(curves, "margin", "Margin", "\u03b2 \u00d7 log-ratio, nats", _MARGIN_CAPTION, "teal"))
    else:
        paragraphs.append("This method has no DPO term: there is no margin, and no rejected completion is trained on.")
    figures.append(_single(curves, "gradient_norm", "Gradient norm", "gradient norm", _NORM_CAPTION, "purple"))
    return Section(
        anchor="training",
        title="Training",
        paragraphs=(*paragraphs, _resolution(curves)),
        figures=tuple(figures),
        tables=(_table(curves.iterations),),
    )


_MARGIN_CAPTION = "How much further apart the policy holds chosen and rejected than the reference does, times \u03b2."
_NORM_CAPTION = "Global norm before clipping."


def _health(iterations: Sequence[Iteration]) -> str:
    """Which way the chosen log-probability went in this run."""
    rose: list[str] = []
    fell: list[str] = []
    for iteration in iterations:
        first, last = _ends(iteration, "chosen_log_prob")
        if first is not None and last is not None and first != last:
            (rose if last > first else fell).append(str(iteration.number))
    went = [
        f"{verb} in iteration{'s' if len(numbers) > 1 else ''} {listing(numbers)}"
        for verb, numbers in (("rose", rose), ("fell", fell))
        if numbers
    ]
    return f"Here it {' and '.join(went)} (the last tenth of the steps against the first)." if went else ""


def _resolution(curves: Curves) -> str:
    width = curves.steps_a_point
    sentence = "Every step is shown." if width == 1 else f"Each point is the mean of {width} steps."
    if len(curves.iterations) > 1:
        sentence += " Uprights mark where an iteration starts: new pairs, and the last model becomes the reference."
    return sentence


def _log_probs(curves: Curves) -> Figure:
    lines = _lines(
        curves,
        ("chosen_log_prob", "chosen", "blue", "-"),
        ("rejected_log_prob", "rejected", "red", "--"),
    )
    axis = _axis(curves, "log-probability, nats")
    return Figure(
        svg=line_chart("log-probs", "Log-probability of chosen and rejected completions by step", axis, lines),
        caption="Log-probability of a completion, summed over its tokens; mean over the pairs of a step.",
    )


def _loss(curves: Curves) -> Figure:
    lines = _lines(curves, ("loss", "loss", "blue", "-"), ("dpo", "DPO", "orange", "--"), ("nll", "NLL", "green", ":"))
    axis = _axis(curves, "nats", level=(math.log(2), "ln 2"))
    return Figure(
        svg=line_chart("loss", "Loss and its terms by step", axis, lines),
        caption="The loss is the DPO term plus \u03b1 times the NLL a token of the chosen completion. At the first "
        "step of an iteration policy and reference are one, and the DPO term is ln 2.",
    )


def _nll(curves: Curves) -> Figure:
    caption = "The loss is \u03b1 times the NLL a token of the chosen completion."
    return _single(curves, "loss", "Loss", "nats", caption, "blue")


def _single(curves: Curves, key: str, label: str, y_label: str, caption: str, hue: str) -> Figure:
    lines = _lines(curves, (key, label.lower(), hue, "-"))
    return Figure(svg=line_chart(key, f"{label} by step", _axis(curves, y_label), lines), caption=caption)


def _lines(curves: Curves, *wanted: tuple[str, str, str, str]) -> list[Line]:
    lines = []
    for key, label, hue, dash in wanted:
        points = curves.line(key)
        if points is not None:
            # Where an iteration is a single step, a line of no length would be invisible.
            marker = "o" if any(len(i.metrics) == 1 for i in curves.iterations) else ""
            lines.append(Line(label=label, hue=hue, dash=dash, marker=marker, x=points[0], y=points[1]))
    return lines


def _axis(curves: Curves, y_label: str, level: tuple[float, str] | None = None) -> Axis:
    return Axis(x_label="step, over all iterations", y_label=y_label, starts=curves.starts[1:], level=level)


def _table(iterations: Sequence[Iteration]) -> Table:
    return Table(
        caption="Log-probabilities and margin, in nats: means over the first and the last tenth of the steps",
        columns=(
            "Iteration",
            "Steps",
            "Chosen, first",
            "last",
            "change",
            "Rejected, first",
            "last",
            "change",
            "Margin, last",
            "Told apart, %, last",
        ),
        rows=tuple(_row(iteration) for iteration in iterations),
    )


def _row(iteration: Iteration) -> tuple[str, ...]:
    margin, accuracy = _ends(iteration, "margin")[1], _ends(iteration, "accuracy")[1]
    return (
        str(iteration.number),
        f"{len(iteration.metrics):,}",
        *_change(*_ends(iteration, "chosen_log_prob")),
        *_change(*_ends(iteration, "rejected_log_prob")),
        number(margin, digits=2),
        number(None if accuracy is None else 100 * accuracy, digits=1),
    )


def _change(first: float | None, last: float | None) -> tuple[str, str, str]:
    change = None if first is None or last is None else last - first
    return number(first, digits=2), number(last, digits=2), signed(change, digits=2)


def _ends(iteration: Iteration, key: str) -> tuple[float | None, float | None]:
    """Means over the first and the last tenth of the steps."""
    found = values(iteration.metrics, key)
    if not found:
        return None, None
    tenth = max(len(found) // 10, 1)
    return sum(found[:tenth]) / tenth, sum(found[-tenth:]) / tenth
