"""Accuracy on the test problems by iteration, beside the paper's where the paper has the task."""

from __future__ import annotations

from irpo_megatron.artifacts import Json
from irpo_megatron.report.line_chart import Axis, Line, line_chart
from irpo_megatron.report.paper import CITATION, PAPER_MODEL, PaperResults, paper_results
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.view import Figure, Section, Table
from irpo_megatron.report.wording import count, interval, number, percent


def accuracy_section(run: Run) -> Section:
    """The chart, its table, and the paper's numbers."""
    if not run.evaluated:
        return Section(anchor="accuracy", title="Accuracy", paragraphs=("No evaluation is complete yet.",))
    paper = paper_results(run.config.task)
    return Section(
        anchor="accuracy",
        title="Accuracy by iteration",
        paragraphs=_paragraphs(run, paper),
        figures=(Figure(svg=_chart(run, paper), caption=_caption(paper)),),
        tables=(_table(run), *(_paper_tables(run, paper) if paper else ())),
    )


def _held_out(iteration: Iteration) -> float | None:
    """Held-out accuracy of the candidate that was chosen; None where none was judged."""
    candidates = iteration.selection["candidates"] if iteration.selection else []
    return next((candidate.get("accuracy") for candidate in candidates if iteration.is_chosen(candidate)), None)


def _paragraphs(run: Run, paper: PaperResults | None) -> tuple[str, ...]:
    lead = (
        f"Greedy decoding on {count(run.evaluated[-1][1]['problems'])} test problems. Training never sees them, "
        "and no checkpoint is chosen by them."
    )
    if paper is None:
        return (f"{lead} The paper has no figures for this task.",)
    return (
        lead,
        f"The paper's figures are those of {PAPER_MODEL} ({CITATION}). They stand here for the shape of the curve: "
        "another model, another prompt or another number of problems moves it.",
    )


def _caption(paper: PaperResults | None) -> str:
    ours = "The band is the 95 % Wilson interval of the greedy accuracy."
    return f"{ours} The grey line is the paper's IRPO with {PAPER_MODEL}." if paper else ours


def _chart(run: Run, paper: PaperResults | None) -> str:
    measured = [(iteration.number, evaluation) for iteration, evaluation in run.evaluated]
    voted = [(at, value["majority"]) for at, value in measured if value.get("majority")]
    chosen = [(i.number, share) for i in run.iterations if (share := _held_out(i)) is not None]
    lines = [
        Line(
            label="greedy, test",
            hue="blue",
            marker="o",
            x=[at for at, _ in measured],
            y=[100 * value["accuracy"] for _, value in measured],
            band=[(100 * value["interval"][0], 100 * value["interval"][1]) for _, value in measured],
        )
    ]
    if voted:
        lines.append(
            Line(
                label=f"maj@{voted[0][1]['k']}, test",
                hue="green",
                dash="--",
                marker="s",
                x=[at for at, _ in voted],
                y=[100 * majority["accuracy"] for _, majority in voted],
            )
        )
    if chosen:
        lines.append(
            Line(
                label="greedy, held out",
                hue="orange",
                dash=":",
                marker="D",
                x=[at for at, _ in chosen],
                y=[100 * share for _, share in chosen],
            )
        )
    if paper:
        lines.append(
            Line(
                label=f"paper's IRPO, {PAPER_MODEL}",
                hue="grey",
                dash="-.",
                marker="^",
                x=list(paper.accuracy),
                y=list(paper.accuracy.values()),
            )
        )
    axis = Axis(x_label="iteration (0 is the base model)", y_label="accuracy, %", y_within=(0, 101))
    return line_chart("accuracy", "Accuracy by iteration; the numbers are in the table below", axis, lines, height=280)


def _table(run: Run) -> Table:
    ks = sorted({k for _, evaluation in run.evaluated for k in evaluation.get("pass_at") or {}}, key=int)
    votes = [evaluation["majority"]["k"] for _, evaluation in run.evaluated if evaluation.get("majority")]
    majority = (f"maj@{votes[0]}, %", "95 %") if votes else ()
    return Table(
        caption="On the test problems, and on the held-out ones for the checkpoint that was chosen",
        columns=(
            "Iteration",
            "Greedy, %",
            "95 %",
            *majority,
            *(f"pass@{k}, %" for k in ks),
            "Held out, %",
            "Cut off, %",
            "No answer, %",
            "Ungraded",
        ),
        rows=tuple(_row(*evaluated, ks, bool(votes)) for evaluated in run.evaluated),
    )


def _row(iteration: Iteration, evaluation: Json, ks: list[str], with_majority: bool) -> tuple[str, ...]:
    majority = evaluation.get("majority") or {}
    pass_at = evaluation.get("pass_at") or {}
    voted = (percent(majority.get("accuracy")), interval(majority.get("interval"))) if with_majority else ()
    return (
        "0 (base)" if iteration.number == 0 else str(iteration.number),
        percent(evaluation["accuracy"]),
        interval(evaluation["interval"]),
        *voted,
        *(percent(pass_at.get(k)) for k in ks),
        percent(_held_out(iteration)),
        percent(evaluation.get("truncated_share")),
        percent(evaluation.get("unparsable_share")),
        count(evaluation.get("ungraded")),
    )


def _paper_tables(run: Run, paper: PaperResults) -> tuple[Table, Table]:
    ours = {iteration.number: evaluation for iteration, evaluation in run.evaluated}
    beside = Table(
        caption=f"Beside the paper's IRPO ({PAPER_MODEL}), accuracy in %",
        columns=("Iteration", "This run", "95 %", "Paper", "Paper, maj@32"),
        rows=tuple(
            (
                "0 (base)" if at == 0 else str(at),
                percent(ours.get(at, {}).get("accuracy")),
                interval(ours.get(at, {}).get("interval")),
                number(paper.accuracy.get(at), digits=1),
                number(paper.majority.get(at), digits=1),
            )
            for at in sorted(ours.keys() | paper.accuracy.keys())
        ),
    )
    others = Table(
        caption=f"The paper's other methods ({PAPER_MODEL})",
        columns=("Method", "Greedy, %"),
        rows=tuple((method, number(value, digits=1)) for method, value in paper.baselines.items()),
    )
    return beside, others
