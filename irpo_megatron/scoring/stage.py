"""Score every sample of an iteration (paper, section 2).

    python -m irpo_megatron.process irpo_megatron.scoring.stage REQUEST.json

Each shard of samples gives a shard of scores of the same name, so that a killed stage goes on with the next shard.
"""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.artifacts import ProgressWriter, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem, Sample, Score, read_rows, row_count, write_rows
from irpo_megatron.requests import ScoreRequest
from irpo_megatron.scoring.graders import graders_of
from irpo_megatron.scoring.score import score_samples
from irpo_megatron.tasks import load_task


def run(request: ScoreRequest) -> None:
    """Write one shard of `Score` rows for each shard of `Sample` rows, and `counts.json`.

    Raises:
        UserError: there are no samples, or some belong to other problems, or a grader does not start.
    """
    task = load_task(request.task, grading=request.scoring.grading)
    gold_by_id = read_gold(request.problems)
    shards = sorted(request.generations.glob("*.parquet"))
    if not shards:
        raise UserError(
            f"{request.generations} holds no samples",
            "scoring reads the Parquet shards of generation",
            "delete the directory so that it is computed again",
        )
    rows = {shard: row_count(shard, Sample) for shard in shards}
    progress = ProgressWriter(request.output, total=sum(rows.values()), unit="samples")
    with graders_of(task, request.scoring.workers) as graders:
        for shard in shards:
            path = request.output / shard.name
            if path.exists():
                progress.advance(rows[shard])
            else:
                samples = read_rows(shard, Sample)
                write_rows(path, score_samples(samples, gold_by_id, graders, advance=progress.advance), Score)
    scores = read_rows(request.output, Score)
    counts = {
        "samples": len(scores),
        "correct": sum(score.correct for score in scores),
        "without_answer": sum(score.answer is None and score.graded for score in scores),
        "ungraded": sum(not score.graded for score in scores),
    }
    write_json(request.output / "counts.json", counts)


def read_gold(problems: Path) -> dict[str, str]:
    """Problem id -> gold answer, of the problems that an iteration may sample: to train on, and held out."""
    rows = [row for name in ("train", "held_out") for row in read_rows(problems / f"{name}.parquet", Problem)]
    return {problem.id: problem.answer for problem in rows}
