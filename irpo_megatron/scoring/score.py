"""The verdict on each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from irpo_megatron.errors import UserError
from irpo_megatron.records import Sample, Score
from irpo_megatron.scoring.graders import Graders
from irpo_megatron.tasks.verdict import Verdict


def score_samples(
    samples: Sequence[Sample],
    gold_by_id: Mapping[str, str],
    graders: Graders,
    *,
    advance: Callable[[int], None] | None = None,
) -> list[Score]:
    """One `Score` a sample, in the same order; a sample without a final answer is wrong (paper, section 2).

    Args:
        gold_by_id: Problem id -> gold answer.
        advance: Is told of each sample that has been scored.

    Raises:
        UserError: a sample belongs to none of these problems, or a grader does not start.
    """
    gold = [_gold_of(sample, gold_by_id) for sample in samples]
    scores = []
    for sample, judgement in zip(samples, graders.judge([s.completion for s in samples], gold), strict=True):
        scores.append(
            Score(
                prompt_id=sample.prompt_id,
                sample_index=sample.sample_index,
                answer=judgement.answer,
                correct=judgement.verdict is Verdict.RIGHT,
                graded=judgement.verdict is not Verdict.UNGRADED,
            )
        )
        if advance is not None:
            advance(1)
    return scores


def _gold_of(sample: Sample, gold_by_id: Mapping[str, str]) -> str:
    gold = gold_by_id.get(sample.prompt_id)
    if gold is None:
        raise UserError(
            f"a sample of {sample.prompt_id}, which is none of the {len(gold_by_id)} problems",
            "samples are scored against the problems that they were drawn for",
            "delete the stage's directory, and that of the samples, so that both are computed again",
        )
    return gold
