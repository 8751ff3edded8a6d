"""Samples become verdicts: by the final answer alone, and a stage goes on where it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.artifacts import Json, Progress, read_json, read_progress
from irpo_megatron.config import ScoringConfig
from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem, Sample, Score, read_rows, write_rows
from irpo_megatron.requests import ScoreRequest
from irpo_megatron.scoring import stage
from irpo_megatron.scoring.graders import graders_of
from irpo_megatron.scoring.score import score_samples
from irpo_megatron.tasks import load_task
from irpo_megatron.tasks.helper_process import HelperProcess

GOLD = {"train-000000": "18", "train-000001": "1,000"}


def sample(prompt_id: str, index: int, completion: str) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        sample_index=index,
        seed=7,
        prompt="p",
        prompt_ids=(1,),
        completion=completion,
        completion_ids=(2, 3),
        finish_reason="stop",
    )


SAMPLES = [
    sample("train-000000", 0, "2 * 9 = 18\nFinal answer: $18.00"),
    sample("train-000000", 1, "Final answer: 81"),
    sample("train-000001", 0, "I do not know."),
    sample("train-000001", 1, "Final answer: 1001"),
    sample("train-000001", 2, "Final answer: 1000"),
]


def test_verdicts() -> None:
    told: list[int] = []
    with graders_of(load_task("gsm8k"), 2) as graders:
        scores = score_samples(SAMPLES, GOLD, graders, advance=told.append)
    assert told == [1] * 5
    assert all(score.graded for score in scores)
    assert [(score.prompt_id, score.sample_index) for score in scores] == [
        (row.prompt_id, row.sample_index) for row in SAMPLES
    ]
    assert [(score.answer, score.correct) for score in scores] == [
        ("$18.00", True),
        ("81", False),
        (None, False),
        ("1001", False),
        ("1000", True),
    ]


def test_a_stranger_is_refused() -> None:
    with (
        graders_of(load_task("gsm8k"), 1) as graders,
        pytest.raises(UserError, match=r"a sample of test-000009, which is none of the 2 problems"),
    ):
        score_samples([sample("test-000009", 0, "x")], GOLD, graders)


@pytest.fixture
def request_(tmp_path: Path) -> ScoreRequest:
    """Two shards, of a problem to train on and of a held-out one."""
    for name in ("problems", "generations", "scores"):
        (tmp_path / name).mkdir()
    for name, (problem_id, answer) in zip(("train", "held_out"), GOLD.items(), strict=True):
        rows = [Problem(id=problem_id, question="q", answer=answer)]
        write_rows(tmp_path / "problems" / f"{name}.parquet", rows, Problem)
    write_rows(tmp_path / "generations" / "generations-00000.parquet", SAMPLES[:2], Sample)
    write_rows(tmp_path / "generations" / "generations-00001.parquet", SAMPLES[2:], Sample)
    return ScoreRequest(
        output=tmp_path / "scores",
        iteration=1,
        task="gsm8k",
        scoring=ScoringConfig(),
        problems=tmp_path / "problems",
        generations=tmp_path / "generations",
    )


def test_shards_correspond(request_: ScoreRequest) -> None:
    stage.run(request_)
    with graders_of(load_task("gsm8k"), 1) as graders:
        for path in request_.generations.glob("*.parquet"):
            expected = score_samples(read_rows(path, Sample), GOLD, graders)
            assert read_rows(request_.output / path.name, Score) == expected
    counts = {"samples": 5, "correct": 2, "without_answer": 1, "ungraded": 0}
    assert read_json(request_.output / "counts.json") == counts
    assert read_progress(request_.output) == Progress(done=5, total=5, unit="samples")


def test_a_sample_that_the_grader_gives_up_on_is_wrong_and_counted(
    request_: ScoreRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = HelperProcess.ask

    def timid(self: HelperProcess, question: Json) -> Json | None:
        return None if question["completion"].endswith("1001") else ask(self, question)

    monkeypatch.setattr(HelperProcess, "ask", timid)
    stage.run(request_)
    assert [(score.answer, score.correct, score.graded) for score in read_rows(request_.output, Score)] == [
        ("$18.00", True, True),
        ("81", False, True),
        (None, False, True),
        (None, False, False),
        ("1000", True, True),
    ]
    counts = {"samples": 5, "correct": 2, "without_answer": 1, "ungraded": 1}
    assert read_json(request_.output / "counts.json") == counts


def test_finished_shards_are_kept(request_: ScoreRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run(request_)
    before = (request_.output / "generations-00000.parquet").stat().st_mtime_ns
    (request_.output / "generations-00001.parquet").unlink()
    scored: list[int] = []

    def counted(samples: list[Sample], *rest: Any, **named: Any) -> list[Score]:
        scored.append(len(samples))
        return score_samples(samples, *rest, **named)

    monkeypatch.setattr(stage, "score_samples", counted)
    stage.run(request_)
    assert scored == [3]
    assert (request_.output / "generations-00000.parquet").stat().st_mtime_ns == before
    assert read_json(request_.output / "counts.json")["samples"] == 5
    assert read_progress(request_.output) == Progress(done=5, total=5, unit="samples")


def test_no_samples(request_: ScoreRequest) -> None:
    for path in request_.generations.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no samples"):
        stage.run(request_)
