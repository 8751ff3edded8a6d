"""Evaluation: results by hand from a scripted model, resumption, and one run of a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.artifacts import Progress, read_json, read_progress
from irpo_megatron.config import EvaluationConfig, ScoringConfig
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.evaluation import stage
from irpo_megatron.evaluation.metrics import wilson_interval
from irpo_megatron.evaluation.scored_samples import ScoredSamples
from irpo_megatron.evaluation.stage import majority
from irpo_megatron.generation import worker
from irpo_megatron.records import Problem, Sample, Score, read_rows, write_rows
from irpo_megatron.requests import EvaluateRequest, WorkerRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task

H, L = "Final answer:H", "Final answer:L"


def make_request(output: Path, problems: Path, model_folder: Path, **changes: Any) -> EvaluateRequest:
    """`changes` are keys of `evaluation` or fields of the request."""
    output.mkdir(exist_ok=True)
    evaluation: dict[str, Any] = {"samples": 4, "pass_at": (1, 2, 4)}
    evaluation |= {key: changes.pop(key) for key in list(changes) if key in EvaluationConfig.model_fields}
    fields: dict[str, Any] = {
        "iteration": 2,
        "seed": 3,
        "task": "arithmetic",
        "scoring": ScoringConfig(),
        "generation": GenerationConfig(max_tokens=16, shard_prompts=2, top_p=0.9, stop=(";;",)),
        "launch": LaunchConfig(threads=1),
    } | changes
    return EvaluateRequest(
        output=output,
        problems=problems,
        model_folder=model_folder,
        evaluation=EvaluationConfig.model_validate(evaluation),
        **fields,
    )


def run(request: EvaluateRequest) -> None:
    """Both halves of the stage in this process: what the workers do, and what is done with their samples."""
    worker.run(WorkerRequest.of(request))
    stage.run(request)


# The first answer is the greedy one too. Right of four: 3, 1, 0, 2 and 1; the majority is right, wrong (a tie that L
# came first in), wrong (no votes), right (an answer that cannot be read does not vote) and right (one vote is enough).
SAID = {
    "0+5:": [H, H, L, H],
    "1+5:": [L, H, "", ""],
    "2+5:": ["", "0", "1", "2..."],
    "3+5:": [H, "Final answer:5", "Final answer:5", H],
    "4+5:": ["3...", H, "", "3"],
}


def test_results(tmp_path: Path, problems: Path, model_folder: Path, script: Any) -> None:
    script.lines["random"] = SAID
    output = tmp_path / "evaluation"
    run(make_request(output, problems, model_folder))
    # Tokens: `Final answer:` is one, its letter another, the end token a third.
    tokens = {H: 3, L: 3, "Final answer:5": 3, "": 1, "0": 2, "1": 2, "2...": 1, "3...": 1, "3": 2}
    greedy_tokens = sum(tokens[answers[0]] for answers in SAID.values())
    assert read_json(output / "results.json") == {
        "problems": 5,
        "accuracy": 2 / 5,
        "interval": list(wilson_interval(2, 5)),
        "majority": {"k": 4, "accuracy": 3 / 5, "interval": list(wilson_interval(3, 5))},
        "pass_at": {
            "1": pytest.approx((3 + 1 + 0 + 2 + 1) / 4 / 5),
            "2": pytest.approx((1 + 1 / 2 + 0 + 5 / 6 + 1 / 2) / 5),
            "4": pytest.approx(4 / 5),
        },
        "tokens": greedy_tokens + sum(tokens[answer] for answers in SAID.values() for answer in answers),
        "truncated_share": 1 / 5,
        "unparsable_share": 2 / 5,
        "ungraded": 0,
    }
    assert read_progress(output) == Progress(done=25, total=25, unit="verdicts")


def test_rows_behind_the_results(tmp_path: Path, problems: Path, model_folder: Path, script: Any) -> None:
    script.lines["random"] = SAID
    output = tmp_path / "evaluation"
    run(make_request(output, problems, model_folder))
    for prefix, count in (("greedy", 5), ("samples", 20)):
        shards = sorted(output.glob(f"{prefix}-*.parquet"))
        assert [shard.name for shard in shards] == [f"{prefix}-0000{number}.parquet" for number in range(3)]
        rows = [row for shard in shards for row in read_rows(shard, Sample)]
        assert len(rows) == count
        for row in rows:
            names = ("evaluate", 2, row.prompt_id, row.sample_index)
            assert row.seed == (0 if prefix == "greedy" else derive_seed(3, *names))
    scores = read_rows(output / "greedy_scores.parquet", Score)
    assert [(score.prompt_id, score.answer, score.correct) for score in scores] == [
        ("test-000000", "H", True),
        ("test-000001", "L", False),
        ("test-000002", None, False),
        ("test-000003", "H", True),
        ("test-000004", None, False),
    ]


def test_settings_reach_the_engine(tmp_path: Path, problems: Path, model_folder: Path, script: Any) -> None:
    script.lines["random"] = SAID
    run(make_request(tmp_path / "evaluation", problems, model_folder, temperature=0.5))
    settings = [asked for asked, _ in script.asked]
    assert [asked.temperature for asked in settings] == [0, 0.5]
    assert {(asked.top_p, asked.max_tokens, asked.stop) for asked in settings} == {(0.9, 16, (";;",))}
    assert script.loaded == ["random"]


def test_greedy_only(tmp_path: Path, problems: Path, model_folder: Path, script: Any) -> None:
    script.lines["random"] = SAID
    output = tmp_path / "evaluation"
    run(make_request(output, problems, model_folder, samples=0))
    results = read_json(output / "results.json")
    assert (results["accuracy"], results["majority"], results["pass_at"]) == (2 / 5, None, {})
    assert not list(output.glob("samples-*"))


def test_a_killed_evaluation_goes_on(tmp_path: Path, problems: Path, model_folder: Path, script: Any) -> None:
    script.lines["random"] = SAID
    run(make_request(tmp_path / "whole", problems, model_folder))
    output = tmp_path / "killed"
    script.fail_after = 10  # 5 greedy, and 5 of the first 8 samples
    with pytest.raises(RuntimeError, match="killed"):
        run(make_request(output, problems, model_folder))
    script.fail_after = None
    script.asked.clear()
    run(make_request(output, problems, model_folder))
    assert [asked.temperature for asked, _ in script.asked] == [0.8]
    for path in (tmp_path / "whole").iterdir():
        assert path.name in ("progress.json", "claims") or path.read_bytes() == (output / path.name).read_bytes()


def test_wordings_of_one_answer_vote_together() -> None:
    """`$18.00`, `18` and `18.` outvote `17`; none of them would alone."""
    answers = [("17", False), ("$18.00", True), ("17", False), ("18", True), ("eighteen", False), ("18.", True)]
    scores = [
        Score(prompt_id="test-000000", sample_index=index, answer=answer, correct=correct)
        for index, (answer, correct) in enumerate(answers)
    ]
    assert majority(ScoredSamples(scores=scores), load_task("gsm8k"))["accuracy"] == 1


def test_what_the_grader_gave_up_on_is_wrong_and_counted(
    tmp_path: Path, problems: Path, model_folder: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("irpo_megatron.tasks.helper_process.HelperProcess.ask", lambda self, question: None)
    script.lines["random"] = SAID
    output = tmp_path / "evaluation"
    run(make_request(output, problems, model_folder))
    results = read_json(output / "results.json")
    assert results["ungraded"] == 5 + 20
    assert (results["accuracy"], results["majority"]["accuracy"], results["pass_at"]["4"]) == (0, 0, 0)
    assert results["unparsable_share"] == 0  # nothing was found out about them


def test_a_real_model(tmp_path: Path, problems: Path, model_folder: Path) -> None:
    rows = [
        Problem(id="test-000000", question="3+4", answer="H"),
        Problem(id="test-000001", question="1+1", answer="L"),
    ]
    write_rows(problems / "test.parquet", rows, Problem)
    for name in ("a", "b"):
        run(make_request(tmp_path / name, problems, model_folder, samples=3, pass_at=(1, 3)))
    results = read_json(tmp_path / "a" / "results.json")
    assert results == read_json(tmp_path / "b" / "results.json")
    assert results["problems"] == 2
    assert results["tokens"] > 8
    samples = [row for shard in sorted((tmp_path / "a").glob("samples-*.parquet")) for row in read_rows(shard, Sample)]
    assert len({row.completion_ids for row in samples}) > 1
