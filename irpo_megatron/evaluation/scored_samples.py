"""Sampling problems from a model and scoring what it says: the part that evaluation and judging share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from irpo_megatron.artifacts import ProgressWriter
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.generation import Generator, SamplingSettings, encode_prompts, sample_shards
from irpo_megatron.records import Problem, Score
from irpo_megatron.scoring.graders import Graders
from irpo_megatron.scoring.score import score_samples
from irpo_megatron.tasks import Task
from irpo_megatron.tokenizer import Tokenizer


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


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Asks models the same problems under the same settings."""

    problems: Sequence[Problem]
    task: Task
    graders: Graders
    """Of that task."""
    generation: GenerationConfig
    """Its stop strings, its top-p and its longest completion hold here too."""
    run_seed: int
    iteration: int

    def ask(
        self,
        directory: Path,
        prefix: str,
        *,
        generator: Generator,
        tokenizer: Tokenizer,
        temperature: float,
        samples: int,
        progress: ProgressWriter,
    ) -> ScoredSamples:
        """Sample every problem into shards of `directory`, those on disk excepted, and score all.

        Args:
            temperature: 0 is greedy decoding.
            samples: Completions a problem.
        """
        gold_by_id = {problem.id: problem.answer for problem in self.problems}
        result = ScoredSamples()
        for rows in sample_shards(
            directory,
            prefix,
            encode_prompts(self.problems, self.task, tokenizer),
            generator=generator,
            settings=SamplingSettings(
                temperature=temperature,
                top_p=self.generation.top_p,
                max_tokens=self.generation.max_tokens,
                stop=self.generation.stop,
            ),
            samples=samples,
            run_seed=self.run_seed,
            seed_names=("evaluate", self.iteration),
            shard_prompts=self.generation.shard_prompts,
            progress=progress,
        ):
            result.scores += score_samples(rows, gold_by_id, self.graders)
            result.tokens += sum(len(row.completion_ids) for row in rows)
            result.truncated += sum(row.finish_reason == "length" for row in rows)
        return result
