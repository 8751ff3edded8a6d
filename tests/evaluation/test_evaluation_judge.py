"""Judging candidates: the best one, the later of equals, and each judged once whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.artifacts import Progress, read_json, read_progress
from irpo_megatron.config import ScoringConfig
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.errors import UserError
from irpo_megatron.evaluation import judge
from irpo_megatron.evaluation.metrics import wilson_interval
from irpo_megatron.generation import worker
from irpo_megatron.records import Problem, write_rows
from irpo_megatron.requests import JudgeRequest, WorkerRequest

H, L = "Final answer:H", "Final answer:L"


@pytest.fixture
def candidates(tmp_path: Path, model_folder: Path) -> dict[str, Path]:
    """Three candidates, which are the same folder under three names, listed out of order."""
    folders = {}
    for name in ("step-000100", "step-000005", "step-000020"):
        (tmp_path / name).symlink_to(model_folder)
        folders[name] = tmp_path / name
    return folders


def make_request(output: Path, problems: Path, candidates: dict[str, Path]) -> JudgeRequest:
    output.mkdir(exist_ok=True)
    return JudgeRequest(
        output=output,
        iteration=1,
        seed=0,
        task="arithmetic",
        generation=GenerationConfig(max_tokens=8),
        scoring=ScoringConfig(),
        launch=LaunchConfig(threads=1),
        problems=problems,
        candidates=candidates,
    )


def run(request: JudgeRequest) -> None:
    """Both halves of the stage in this process: what the workers do, and what is done with their samples."""
    worker.run(WorkerRequest.of(request))
    judge.run(request)


def let_say(script: Any, **right: int) -> None:
    """Keys `s5=1`: the candidate of step 5 has 1 of the 2 held-out problems right."""
    for key, count in right.items():
        answers = [H if index < count else L for index in range(2)]
        script.lines[f"step-{int(key[1:]):06d}"] = {f"{index}+5:": [answers[index]] for index in range(2)}


@pytest.mark.parametrize(
    ("right", "best"),
    [
        ({"s5": 2, "s20": 1, "s100": 1}, 5),
        ({"s5": 0, "s20": 1, "s100": 0}, 20),
        ({"s5": 1, "s20": 1, "s100": 0}, 20),
        ({"s5": 0, "s20": 0, "s100": 0}, 100),
    ],
)
def test_the_best_and_of_equals_the_later(
    tmp_path: Path, problems: Path, candidates: dict[str, Path], script: Any, right: dict[str, int], best: int
) -> None:
    let_say(script, **right)
    output = tmp_path / "selection"
    run(make_request(output, problems, candidates))
    assert read_json(output / "selection.json") == {
        "step": best,
        "candidates": [
            {
                "name": f"step-{step:06d}",
                "step": step,
                "accuracy": right[f"s{step}"] / 2,
                "interval": list(wilson_interval(right[f"s{step}"], 2)),
                "problems": 2,
                "ungraded": 0,
            }
            for step in (5, 20, 100)
        ],
    }
    assert {settings.temperature for settings, _ in script.asked} == {0}
    assert read_progress(output) == Progress(done=6, total=6, unit="verdicts")


def test_a_killed_judge_loads_no_finished_candidate_again(
    tmp_path: Path, problems: Path, candidates: dict[str, Path], script: Any
) -> None:
    let_say(script, s5=1, s20=2, s100=0)
    output = tmp_path / "selection"
    script.fail_after = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(make_request(output, problems, candidates))
    assert not (output / "selection.json").exists()
    script.fail_after = None
    script.loaded.clear()
    run(make_request(output, problems, candidates))
    assert script.loaded == ["step-000020", "step-000100"]
    assert script.closed == 4  # that of the killed one, too
    assert read_json(output / "selection.json")["step"] == 20
    assert read_progress(output) == Progress(done=6, total=6, unit="verdicts")


def test_nothing_held_out(tmp_path: Path, problems: Path, candidates: dict[str, Path]) -> None:
    write_rows(problems / "held_out.parquet", [], Problem)
    with pytest.raises(UserError, match=r"held_out\.parquet is empty"):
        run(make_request(tmp_path / "selection", problems, candidates))


def test_a_real_model(tmp_path: Path, problems: Path, candidates: dict[str, Path]) -> None:
    output = tmp_path / "selection"
    run(make_request(output, problems, candidates))
    selection = read_json(output / "selection.json")
    # The same weights three times: equal accuracies, so the last step.
    assert len({candidate["accuracy"] for candidate in selection["candidates"]}) == 1
    assert selection["step"] == 100
