"""What became of an iteration's problems, samples and pairs."""

from __future__ import annotations

from irpo_megatron.artifacts import Json
from irpo_megatron.report.bar_chart import Part, stacked_columns
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.view import Figure, Section, Table
from irpo_megatron.report.wording import count

_LABELS = {
    "problems": "Problems",
    "problems_all_right": "\u2026 with every sample right",
    "problems_all_wrong": "\u2026 with every sample wrong",
    "samples": "Samples",
    "samples_truncated": "\u2026 cut off at the limit",
    "samples_empty": "\u2026 empty",
    "samples_ungraded": "\u2026 that the grader gave up on, and so counted as wrong",
    "winners": "Winners",
    "winners_distinct": "\u2026 distinct",
    "losers": "Losers",
    "losers_distinct": "\u2026 distinct",
    "gold_winners": "Gold solutions added to the winners",
    "pairs": "Pairs kept",
    "pairs_held_out": "\u2026 of held-out problems, for retraining",
    "pairs_too_long": "Pairs dropped: too long",
    "pairs_identical": "Pairs dropped: chosen and rejected equal",
    "pairs_over_limit": "Pairs dropped: over the limit an iteration",
}

_SOURCES = {
    "irpo": "A problem gives pairs where some samples are right and others wrong. As the model improves fewer problems "
    "do: those with every sample right have nothing left to teach.",
    "star": "A problem gives training rows where some of its samples are right. This method uses winners only; what is "
    "counted as a pair here has no rejected half.",
    "sft": "This method samples nothing: every problem with a gold solution gives a row, counted here as a pair "
    "without a rejected half.",
}


def pair_yield_section(run: Run) -> Section:
    """Three charts of counts, and every count in a table."""
    counted = [(iteration, _counts(iteration)) for iteration in run.iterations if iteration.pair_counts]
    if not counted:
        return Section(anchor="pairs", title="Pairs", paragraphs=("No pairs have been built yet.",))
    return Section(
        anchor="pairs",
        title="Pairs",
        paragraphs=(_SOURCES[run.config.method],),
        figures=tuple(_figures(counted)),
        tables=(_table(counted),),
    )


def _counts(iteration: Iteration) -> Json:
    """What `pairs` counted, and of what `score` counted the part that nothing else shows."""
    graded = {"samples_ungraded": iteration.score_counts["ungraded"]} if iteration.score_counts else {}
    return {**(iteration.pair_counts or {}), **graded}


def _figures(counted: list[tuple[Iteration, Json]]) -> list[Figure]:
    bars = [str(iteration.number) for iteration, _ in counted]
    counts = [counts for _, counts in counted]
    figures = []
    if any(c.get("samples") for c in counts):
        mixed = _rest(counts, "problems", "problems_all_right", "problems_all_wrong")
        problems = [
            Part(label="some right, some wrong", hue="blue", values=mixed),
            Part(label="all right", hue="green", values=_values(counts, "problems_all_right")),
            Part(label="all wrong", hue="red", values=_values(counts, "problems_all_wrong")),
        ]
        whole = _rest(counts, "samples", "samples_truncated", "samples_empty")
        samples = [
            Part(label="complete", hue="blue", values=whole),
            Part(label="cut off", hue="amber", values=_values(counts, "samples_truncated")),
            Part(label="empty", hue="red", values=_values(counts, "samples_empty")),
        ]
        figures += [
            _figure("problems", "Problems by their samples", bars, problems, "problems"),
            _figure("samples", "Samples by how they ended", bars, samples, "samples"),
        ]
    pairs = [
        Part(label="kept", hue="blue", values=_values(counts, "pairs")),
        Part(label="too long", hue="amber", values=_values(counts, "pairs_too_long")),
        Part(label="both halves equal", hue="red", values=_values(counts, "pairs_identical")),
        Part(label="over the limit", hue="grey", values=_values(counts, "pairs_over_limit")),
    ]
    return [*figures, _figure("pairs", "Pairs kept and dropped", bars, pairs, "pairs")]


def _figure(name: str, title: str, bars: list[str], parts: list[Part], unit: str) -> Figure:
    svg = stacked_columns(f"yield-{name}", f"{title}, by iteration", bars, parts, unit=unit)
    return Figure(svg=svg, caption=f"{title}.")


def _values(counts: list[Json], key: str) -> list[float]:
    return [float(c.get(key, 0)) for c in counts]


def _rest(counts: list[Json], whole: str, *parts: str) -> list[float]:
    """What is left of a count without those named parts."""
    return [float(c.get(whole, 0) - sum(c.get(part, 0) for part in parts)) for c in counts]


def _table(counted: list[tuple[Iteration, Json]]) -> Table:
    found = {key for _, counts in counted for key in counts}
    keys = [*(key for key in _LABELS if key in found), *sorted(found - _LABELS.keys())]
    return Table(
        caption="Every count, by iteration",
        columns=("Count", *(str(iteration.number) for iteration, _ in counted)),
        rows=tuple(
            (_LABELS.get(key, key.replace("_", " ")), *(count(counts.get(key)) for _, counts in counted))
            for key in keys
        ),
    )
