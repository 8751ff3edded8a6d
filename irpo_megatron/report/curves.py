"""Training metrics over all iterations, on one axis of steps, thinned so that a long run still fits in the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irpo_megatron.artifacts import Json
from irpo_megatron.report.line_chart import broken
from irpo_megatron.report.run_files import Iteration

POINTS = 400
"""About as many points as a line has at most, over all iterations."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The metrics of every trained iteration, laid end to end."""

    iterations: tuple[Iteration, ...]
    starts: tuple[int, ...]
    """Steps before each of them."""
    steps_a_point: int
    """Each point of a line is the mean of so many steps."""

    def line(self, key: str) -> tuple[list[float], list[float]] | None:
        """x and y of one metric, with a gap between iterations; None where no step has it."""
        segments = [
            _thinned(iteration.metrics, key, start, self.steps_a_point)
            for iteration, start in zip(self.iterations, self.starts, strict=True)
        ]
        return broken(segments) if any(x for x, _ in segments) else None

    def start_of(self, iteration: Iteration) -> int:
        """Steps before an iteration; 0 where it has no metrics."""
        return dict(zip((i.number for i in self.iterations), self.starts, strict=True)).get(iteration.number, 0)


def curves_of(iterations: Sequence[Iteration]) -> Curves:
    """The curves of the iterations that have metrics."""
    trained = tuple(iteration for iteration in iterations if iteration.metrics)
    starts, total = [], 0
    for iteration in trained:
        starts.append(total)
        total += int(iteration.metrics[-1]["step"])
    return Curves(iterations=trained, starts=tuple(starts), steps_a_point=-(-max(total, 1) // POINTS))


def values(metrics: Sequence[Json], key: str) -> list[float]:
    """One metric over the steps that have it."""
    return [float(row[key]) for row in metrics if row.get(key) is not None]


def _thinned(metrics: Sequence[Json], key: str, start: int, width: int) -> tuple[list[float], list[float]]:
    """Means over `width` neighbouring steps, each at the middle of its steps."""
    found = [(start + float(row["step"]), float(row[key])) for row in metrics if row.get(key) is not None]
    bins = [found[first : first + width] for first in range(0, len(found), width)]
    return [_mean([x for x, _ in bin_]) for bin_ in bins], [_mean([y for _, y in bin_]) for bin_ in bins]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
