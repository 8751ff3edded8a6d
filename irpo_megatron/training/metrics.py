"""The record of training: one line of metrics.jsonl a step, and the trackers that were asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import TracebackType

from irpo_megatron.artifacts import ProgressWriter
from irpo_megatron.requests import TrainRequest
from irpo_megatron.training.batches import WeightedPair
from irpo_megatron.training.step import PAIR_METRICS, StepResult
from irpo_megatron.training.tracking import open_tracker

METRICS = "metrics.jsonl"
# What only pairs with a rejected completion have: null for the methods without a DPO term.
_OF_PAIRS = ("dpo", "rejected_log_prob", "margin", "accuracy")


class MetricsLog:
    """Writes the metrics of every step; on rank 0 only."""

    def __init__(self, request: TrainRequest, *, done: int, total: int) -> None:
        """Go on after `done` of `total` steps: lines of steps that will be computed again are cut off."""
        self._path = request.output / METRICS
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)[:done] if done else []
        self._path.write_text("".join(lines), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._iteration = request.iteration
        self._has_pairs = request.reference is not None
        self._progress = ProgressWriter(request.output, total=total, unit="steps", done=done)
        self._trackers = [open_tracker(name, request, done=done) for name in request.tracking.to]

    def write(self, step: int, result: StepResult | None, batch: Sequence[WeightedPair], *, seconds: float) -> None:
        """Record optimizer step `step` (1-based).

        Args:
            result: None where the batch was left out: all that would come of it is null.
            batch: The pairs of the global batch.
            seconds: Wall time of the step.
        """
        tokens = sum(
            len(item.pair.prompt_ids) + len(completion)
            for item in batch
            for completion in (item.pair.chosen_ids, item.pair.rejected_ids)[: 1 + self._has_pairs]
        )
        means: Mapping[str, float] = {} if result is None else result.means
        values: dict[str, float | None] = {
            name: None if name in _OF_PAIRS and not self._has_pairs else means.get(name) for name in PAIR_METRICS
        }
        values |= {
            "gradient_norm": None if result is None else result.gradient_norm,
            "learning_rate": None if result is None else result.learning_rate,
            "pairs": len(batch),
            "tokens": tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "seconds": seconds,
        }
        line = {"iteration": self._iteration, "step": step, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._progress.advance(1)
        present = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(present, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def in_words(result: StepResult | None) -> str:
    """What somebody who watches wants to know of a step."""
    if result is None:
        return "left out"
    named = [f"{name} {result.means[name]:.4g}" for name in ("loss", "chosen_log_prob", "margin")]
    return ", ".join([*named, f"gradient norm {result.gradient_norm:.4g}"])
