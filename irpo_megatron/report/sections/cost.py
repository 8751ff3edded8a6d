"""Where the time and the tokens went."""

from __future__ import annotations

from irpo_megatron.records import ReferenceLogProb, Sample
from irpo_megatron.report.bar_chart import Part, stacked_rows
from irpo_megatron.report.columns import list_lengths, total
from irpo_megatron.report.run_files import STAGES, Iteration, Run
from irpo_megatron.report.svg import HUES
from irpo_megatron.report.view import Figure, Section, Table
from irpo_megatron.report.wording import count, duration


def cost_section(run: Run) -> Section:
    """Wall time of each stage, and the tokens that it sampled or read."""
    stages = _stages(run)
    if not stages:
        return Section(anchor="cost", title="Time and tokens", paragraphs=("No stage is complete yet.",))
    return Section(
        anchor="cost",
        title="Time and tokens",
        paragraphs=("Wall time of a stage from its start to its commit, start-up of its processes included.",),
        figures=tuple(_figures(run, stages)),
        tables=(_table(run, stages),),
    )


def _stages(run: Run) -> list[str]:
    found = {*run.seconds, *(stage for iteration in run.iterations for stage in iteration.seconds)}
    return [*(stage for stage in STAGES if stage in found), *sorted(found.difference(STAGES))]


def _figures(run: Run, stages: list[str]) -> list[Figure]:
    """One chart, or none before the first iteration has a stage."""
    iterations = [iteration for iteration in run.iterations if iteration.seconds]
    if not iterations:
        return []
    parts = [stage for stage in stages if stage not in run.seconds]
    return [Figure(svg=_chart(iterations, parts), caption="Wall time by stage.")]


def _chart(iterations: list[Iteration], stages: list[str]) -> str:
    longest = max(sum(iteration.seconds.values()) for iteration in iterations)
    unit, length = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    parts = [
        Part(
            label=stage,
            hue=HUES[index % len(HUES)],
            values=[iteration.seconds.get(stage, 0.0) / length for iteration in iterations],
        )
        for index, stage in enumerate(stages)
    ]
    bars = ["base" if iteration.number == 0 else str(iteration.number) for iteration in iterations]
    return stacked_rows("seconds", f"Wall time by iteration and stage, in {unit}", bars, parts, unit=unit)


def _table(run: Run, stages: list[str]) -> Table:
    rows = []
    for stage in stages:
        seconds = [run.seconds.get(stage), *(iteration.seconds.get(stage) for iteration in run.iterations)]
        whole = sum(value for value in seconds if value is not None)
        tokens = sum(_tokens(iteration, stage) for iteration in run.iterations)
        rate = count(round(tokens / whole)) if tokens and whole else ""
        rows.append(
            (stage, *(_cell(value) for value in seconds), duration(whole), count(tokens) if tokens else "", rate)
        )
    sums = [sum(run.seconds.values()), *(sum(iteration.seconds.values()) for iteration in run.iterations)]
    rows.append(("all", *(duration(value) for value in sums), duration(sum(sums)), "", ""))
    return Table(
        caption="Wall time by stage and iteration; tokens sampled or read, over all iterations",
        columns=(
            "Stage",
            "Before",
            *("base" if iteration.number == 0 else str(iteration.number) for iteration in run.iterations),
            "All",
            "Tokens",
            "Tokens a second",
        ),
        rows=tuple(rows),
    )


def _cell(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _tokens(iteration: Iteration, stage: str) -> int:
    """Tokens that a stage sampled (generations, evaluation) or read (reference, training); 0 where it does neither."""
    directory = iteration.committed(stage)
    if directory is None:
        return 0
    if stage == "generations":
        return list_lengths(sorted(directory.glob("*.parquet")), Sample, "completion_ids")
    if stage == "reference":
        return total(sorted(directory.glob("*.parquet")), ReferenceLogProb, "tokens")
    if stage == "training":
        return sum(int(row.get("tokens") or 0) for row in iteration.metrics)
    if stage == "evaluation" and iteration.evaluation:
        return int(iteration.evaluation.get("tokens") or 0)
    return 0
