"""The verdicts on what workers have sampled: the part that evaluation and judging share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from irpo_megatron.artifacts import ProgressWriter
from irpo_megatron.generation import read_shards
from irpo_megatron.records import Score
from irpo_megatron.scoring.graders import Graders
from irpo_megatron.scoring.score import score_samples


@dataclass(kw_only=True)
class ScoredSamples:
    """The verdicts on some samples, and what they cost."""

    scores: list[Score] = field(default_factory=list)
    """In the order of the problems, then of the sample index."""
    tokens: int = 0
    """Generated tokens, end tokens included."""
    truncated: int = 0
    """Samples that were cut off at `max_tokens`; they are scored as they are."""

    @property
    def correct(self) -> int:
        """Number of right samples."""
        return sum(score.correct for score in self.scores)

    @property
    def ungraded(self) -> int:
        """Number of samples that the grader gave up on; they count as wrong."""
        return sum(not score.graded for score in self.scores)

    @property
    def without_answer(self) -> int:
        """Number of samples that were graded and have no final answer; they count as wrong."""
        return sum(score.graded and score.answer is None for score in self.scores)

    def by_problem(self) -> list[list[Score]]:
        """The scores of each problem, in order of the sample index."""
        groups: dict[str, list[Score]] = {}
        for score in self.scores:
            groups.setdefault(score.prompt_id, []).append(score)
        return list(groups.values())


def score_shards(
    directory: Path, prefix: str, gold_by_id: Mapping[str, str], graders: Graders, *, progress: ProgressWriter
) -> ScoredSamples:
    """The verdicts on every sample of a prefix.

    Args:
        gold_by_id: Problem id -> gold answer.
        progress: Counts samples.

    Raises:
        UserError: a sample belongs to none of the problems, or a grader does not start.
    """
    samples = read_shards(directory, prefix)
    return ScoredSamples(
        scores=score_samples(samples, gold_by_id, graders, advance=progress.advance),
        tokens=sum(len(sample.completion_ids) for sample in samples),
        truncated=sum(sample.finish_reason == "length" for sample in samples),
    )
