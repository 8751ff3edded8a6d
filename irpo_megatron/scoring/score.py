"""The verdict on each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from irpo_megatron.errors import UserError
from irpo_megatron.records import Sample, Score
from irpo_megatron.tasks import Task


def score_samples(samples: Sequence[Sample], gold_by_id: Mapping[str, str], task: Task) -> list[Score]:
    """One `Score` a sample, in the same order; a sample without a final answer is wrong (paper, section 2).

    Args:
        gold_by_id: Problem id -> gold answer.

    Raises:
        UserError: a sample belongs to none of these problems.
    """
    return [_score(sample, gold_by_id, task) for sample in samples]


def _score(sample: Sample, gold_by_id: Mapping[str, str], task: Task) -> Score:
    gold = gold_by_id.get(sample.prompt_id)
    if gold is None:
        raise UserError(
            f"a sample of {sample.prompt_id}, which is none of the {len(gold_by_id)} problems",
            "samples are scored against the problems that they were drawn for",
            "delete the stage's directory, and that of the samples, so that both are computed again",
        )
    answer = task.extract_answer(sample.completion)
    return Score(
        prompt_id=sample.prompt_id,
        sample_index=sample.sample_index,
        answer=answer,
        correct=answer is not None and task.agrees(answer, gold),
    )
