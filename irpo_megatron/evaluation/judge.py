"""Judge candidate checkpoints by greedy accuracy on the held-out problems (paper, section 3.1).

    python -m irpo_megatron.process irpo_megatron.evaluation.judge REQUEST.json

Workers have left each candidate's answers in `judged/<name>/greedy-*.parquet`; here no engine is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from irpo_megatron.artifacts import Json, ProgressWriter, step_of, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.evaluation.metrics import wilson_interval
from irpo_megatron.evaluation.scored_samples import ScoredSamples, score_shards
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import JudgeRequest
from irpo_megatron.scoring.graders import graders_of
from irpo_megatron.tasks import load_task


def run(request: JudgeRequest) -> None:
    """Write `selection.json`: the step of the best candidate, the later one of equals, and the accuracy of each.

    Raises:
        UserError: no problem is held out, or a grader does not start.
    """
    held_out = read_rows(request.problems / "held_out.parquet", Problem)
    if not held_out:
        raise UserError(
            f"{request.problems / 'held_out.parquet'} is empty",
            "candidates are judged on held-out problems",
            "set selection.held_out above 0, or selection.candidates=1",
        )
    judged = judge_all(request, {problem.id: problem.answer for problem in held_out})
    best = max(judged, key=lambda candidate: (candidate["accuracy"], candidate["step"]))
    write_json(request.output / "selection.json", {"step": best["step"], "candidates": judged})


def judge_all(request: JudgeRequest, gold_by_id: Mapping[str, str]) -> list[Json]:
    """What `judgement` says of each candidate, by step.

    Args:
        gold_by_id: Problem id -> gold answer.
    """
    names = sorted(request.candidates, key=step_of)
    task = load_task(request.task, grading=request.scoring.grading)
    progress = ProgressWriter(request.output, total=len(gold_by_id) * len(names), unit="verdicts")
    with graders_of(task, request.scoring.workers) as graders:
        return [
            judgement(
                name,
                score_shards(request.output / "judged" / name, "greedy", gold_by_id, graders, progress=progress),
            )
            for name in names
        ]


def judgement(name: str, greedy: ScoredSamples) -> Json:
    """One candidate's accuracy."""
    return {
        "name": name,
        "step": step_of(name),
        "accuracy": greedy.correct / len(greedy.scores),
        "interval": list(wilson_interval(greedy.correct, len(greedy.scores))),
        "problems": len(greedy.scores),
        "ungraded": greedy.ungraded,
    }
