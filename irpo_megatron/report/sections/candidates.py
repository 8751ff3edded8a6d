"""The checkpoints that were judged on held-out problems, and the one that was taken."""

from __future__ import annotations

from irpo_megatron.artifacts import Json
from irpo_megatron.report.curves import curves_of
from irpo_megatron.report.line_chart import Axis, Line, broken, line_chart
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.view import Figure, Section, Table
from irpo_megatron.report.wording import count, interval, percent

_CAPTION = "Uprights are 95 % Wilson intervals; a ring marks the choice."


def candidates_section(run: Run) -> Section:
    """Held-out accuracy by step, iteration after iteration."""
    judged = [(iteration, _judged(iteration)) for iteration in run.iterations]
    judged = [(iteration, candidates) for iteration, candidates in judged if candidates]
    if not judged:
        return Section(
            anchor="candidates",
            title="Choice of a checkpoint",
            paragraphs=("No candidates have been judged: each iteration so far takes its last step.",),
        )
    return Section(
        anchor="candidates",
        title="Choice of a checkpoint",
        paragraphs=(
            "Each candidate answers the held-out training problems greedily; the best becomes the iteration's model. "
            "Being the best of several flatters the winner a little, so its held-out accuracy is no test result.",
        ),
        figures=(Figure(svg=_chart(run, judged), caption=_CAPTION),),
        tables=(_table(judged),),
    )


def _judged(iteration: Iteration) -> list[Json]:
    candidates = (iteration.selection or {}).get("candidates", [])
    return sorted((c for c in candidates if c.get("accuracy") is not None), key=lambda c: int(c["step"]))


def _chart(run: Run, judged: list[tuple[Iteration, list[Json]]]) -> str:
    curves = curves_of(run.iterations)
    steps = [[float(curves.start_of(i) + c["step"]) for c in candidates] for i, candidates in judged]
    bounds = [[_bounds(c) for c in candidates] for _, candidates in judged]
    x, y = broken([(at, [_percentage(c) for c in of]) for at, (_, of) in zip(steps, judged, strict=True)])
    _, low = broken([(at, [low for low, _ in of]) for at, of in zip(steps, bounds, strict=True)])
    _, high = broken([(at, [high for _, high in of]) for at, of in zip(steps, bounds, strict=True)])
    chosen = [(i, c) for i, candidates in judged for c in candidates if i.is_chosen(c)]
    lines = [
        Line(label="candidate, held out", hue="orange", marker="o", x=x, y=y, bars=list(zip(low, high, strict=True))),
        Line(
            label="chosen",
            hue="ink",
            dash="",
            marker="o",
            ring=True,
            x=[float(curves.start_of(i) + c["step"]) for i, c in chosen],
            y=[_percentage(c) for _, c in chosen],
        ),
    ]
    axis = Axis(x_label="step, over all iterations", y_label="accuracy, %", starts=curves.starts[1:], y_within=(0, 101))
    return line_chart("candidates", "Held-out accuracy of the candidates by step", axis, lines)


def _percentage(candidate: Json) -> float:
    return 100 * float(candidate["accuracy"])


def _bounds(candidate: Json) -> tuple[float, float]:
    """The interval in percent; where none is given, an upright of no length."""
    low, high = candidate.get("interval") or (candidate["accuracy"], candidate["accuracy"])
    return 100 * float(low), 100 * float(high)


def _table(judged: list[tuple[Iteration, list[Json]]]) -> Table:
    return Table(
        caption="Candidates, judged on held-out problems",
        columns=("Iteration", "Step", "Accuracy, %", "95 %", "Problems", "Chosen"),
        rows=tuple(
            (
                str(iteration.number),
                count(candidate["step"]),
                percent(candidate["accuracy"]),
                interval(candidate.get("interval")),
                count(candidate.get("problems")),
                "chosen" if iteration.is_chosen(candidate) else "",
            )
            for iteration, candidates in judged
            for candidate in candidates
        ),
    )
