"""Judge candidate checkpoints by greedy accuracy on the held-out problems (paper, section 3.1).

    python -m irpo_megatron.process irpo_megatron.evaluation.judge REQUEST.json

A killed judge goes on with the candidate that it was at, from its last complete shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from irpo_megatron.artifacts import Json, ProgressWriter, read_json, step_of, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.evaluation.metrics import wilson_interval
from irpo_megatron.evaluation.scored_samples import Examiner
from irpo_megatron.generation import load_generator
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import JudgeRequest
from irpo_megatron.scoring.graders import graders_of
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer


def run(request: JudgeRequest) -> None:
    """Write `selection.json`: the step of the best candidate, the later one of equals, and the accuracy of each.

    Raises:
        UserError: no problem is held out, a candidate is unusable, a prompt is too long, or a grader does not
            start.
    """
    problems = read_rows(request.problems / "held_out.parquet", Problem)
    if not problems:
        raise UserError(
            f"{request.problems / 'held_out.parquet'} is empty",
            "candidates are judged on held-out problems",
            "set selection.held_out above 0, or selection.candidates=1",
        )
    task = load_task(request.task, grading=request.scoring.grading)
    with graders_of(task, request.scoring.workers) as graders:
        examiner = Examiner(
            problems=problems,
            task=task,
            graders=graders,
            generation=request.generation,
            run_seed=request.seed,
            iteration=request.iteration,
        )
        judged = list(judge_all(request, examiner))
    best = max(judged, key=lambda candidate: (candidate["accuracy"], candidate["step"]))
    write_json(request.output / "selection.json", {"step": best["step"], "candidates": judged})


def judge_all(request: JudgeRequest, examiner: Examiner) -> Iterator[Json]:
    """What `judge` says of each candidate, by step; those judged before a kill are read back."""
    problems = len(examiner.problems)
    progress = ProgressWriter(request.output, total=problems * len(request.candidates), unit="samples")
    for name in sorted(request.candidates, key=step_of):
        path = request.output / "judged" / name / "accuracy.json"
        if path.is_file():
            progress.advance(problems)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, judge(request, name, examiner, path.parent, progress))
        yield read_json(path)


def judge(request: JudgeRequest, name: str, examiner: Examiner, directory: Path, progress: ProgressWriter) -> Json:
    """One candidate's accuracy; its model leaves the memory when this returns."""
    folder = request.candidates[name]
    with closing(load_generator(request.generation, folder)) as generator:
        greedy = examiner.ask(
            directory,
            "greedy",
            generator=generator,
            tokenizer=Tokenizer(folder),
            temperature=0,
            samples=1,
            progress=progress,
        )
    return {
        "name": name,
        "step": step_of(name),
        "accuracy": greedy.correct / len(greedy.scores),
        "interval": list(wilson_interval(greedy.correct, len(greedy.scores))),
        "problems": len(greedy.scores),
        "ungraded": greedy.ungraded,
    }
