"""Measure a model on the test problems: greedy accuracy, maj@k and pass@k (paper, section 3).

    python -m irpo_megatron.process irpo_megatron.evaluation.stage REQUEST.json

Workers have left the shards `greedy-*.parquet` and `samples-*.parquet`; here no engine is needed.
"""

from __future__ import annotations

from irpo_megatron.artifacts import Json, ProgressWriter, write_json
from irpo_megatron.evaluation.metrics import majority_correct, pass_at_k, wilson_interval
from irpo_megatron.evaluation.scored_samples import ScoredSamples, score_shards
from irpo_megatron.records import Problem, Score, read_rows, write_rows
from irpo_megatron.requests import EvaluateRequest
from irpo_megatron.scoring.graders import graders_of
from irpo_megatron.tasks import Task, load_task


def run(request: EvaluateRequest) -> None:
    """Write `greedy_scores.parquet` and `results.json`.

    Raises:
        UserError: a grader does not start.
    """
    k = request.evaluation.samples
    task = load_task(request.task, grading=request.scoring.grading)
    gold_by_id = {problem.id: problem.answer for problem in read_rows(request.problems / "test.parquet", Problem)}
    progress = ProgressWriter(request.output, total=len(gold_by_id) * (1 + k), unit="verdicts")
    with graders_of(task, request.scoring.workers) as graders:
        greedy = score_shards(request.output, "greedy", gold_by_id, graders, progress=progress)
        sampled = score_shards(request.output, "samples", gold_by_id, graders, progress=progress) if k > 0 else None
    write_rows(request.output / "greedy_scores.parquet", greedy.scores, Score)
    write_json(request.output / "results.json", results(greedy, sampled, task, request.evaluation.pass_at))


def results(greedy: ScoredSamples, sampled: ScoredSamples | None, task: Task, pass_at: tuple[int, ...]) -> Json:
    """Shares between 0 and 1, with 95 % intervals over problems; `tokens` and `ungraded` count over all samples.

    Args:
        greedy: One completion a problem.
        sampled: k completions a problem, or None.
        pass_at: The k of pass@k.
    """
    n = len(greedy.scores)
    return {
        "problems": n,
        "accuracy": greedy.correct / n,
        "interval": list(wilson_interval(greedy.correct, n)),
        "majority": majority(sampled, task) if sampled else None,
        "pass_at": {str(k): mean_pass_at(sampled, k) for k in pass_at} if sampled else {},
        "tokens": greedy.tokens + (sampled.tokens if sampled else 0),
        "truncated_share": greedy.truncated / n,
        "unparsable_share": greedy.without_answer / n,
        "ungraded": greedy.ungraded + (sampled.ungraded if sampled else 0),
    }


def majority(sampled: ScoredSamples, task: Task) -> Json:
    """maj@k: k, accuracy and its interval. Answers that the task reads as equal vote together, unreadable ones not."""
    problems = sampled.by_problem()
    right = sum(majority_correct([(_vote(score, task), score.correct) for score in scores]) for scores in problems)
    return {
        "k": len(problems[0]),
        "accuracy": right / len(problems),
        "interval": list(wilson_interval(right, len(problems))),
    }


def mean_pass_at(sampled: ScoredSamples, k: int) -> float:
    """pass@k, a mean over problems."""
    problems = sampled.by_problem()
    return sum(pass_at_k(len(scores), sum(score.correct for score in scores), k) for scores in problems) / len(problems)


def _vote(score: Score, task: Task) -> str | None:
    return None if score.answer is None else task.canonical(score.answer)
