"""results.json: exact, and the same for two runs apart from their times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report.synthetic_run import COUNTS, RunBuilder

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import UserError
from irpo_megatron.report.results import collect_results, write_results
from irpo_megatron.report.stage import SUMMARY_COLUMNS, summary_rows


def test_results_of_a_finished_run(run_dir: Path) -> None:
    results = collect_results(run_dir)
    assert {key: results[key] for key in ("task", "method")} == {"task": "arithmetic", "method": "irpo"}
    assert [entry["iteration"] for entry in results["iterations"]] == [0, 1, 2]
    assert results["iterations"][0] == {
        "iteration": 0,
        "accuracy": 0.5,
        "interval": [0.42, 0.54],
        "majority": {"k": 8, "accuracy": 0.53},
        "ungraded": 3,
        "pass_at": {"1": 0.4, "8": 0.99},
        "pairs": None,
        "seconds": {"checkpoint-megatron": 1.5, "evaluation": 1.5},
    }
    last = results["iterations"][2]
    assert last["pairs"] == COUNTS
    assert list(last["seconds"]) == [
        "generations",
        "scores",
        "pairs",
        "reference",
        "training",
        "selection",
        "checkpoint-hf",
        "evaluation",
    ]
    assert set(last["seconds"].values()) == {3.5}


def test_only_committed_evaluations_count(builder: RunBuilder) -> None:
    builder.base()
    builder.iteration(1, up_to="checkpoint-hf")
    # A stage that is still at work has no manifest; one that was killed between manifest and rename has.
    for name in ("evaluation.partial", "unrelated"):
        (builder.directory / "iteration-01" / name).mkdir()
    write_json(builder.directory / "iteration-01" / "evaluation.partial" / "manifest.json", {"seconds": 1})
    assert [entry["iteration"] for entry in collect_results(builder.directory)["iterations"]] == [0]


def test_iterations_are_ordered_by_number_not_by_name(builder: RunBuilder) -> None:
    builder.evaluation(0)
    builder.evaluation(1)
    builder.evaluation(2)
    (builder.directory / "iteration-02").rename(builder.directory / "iteration-100")
    (builder.directory / "iteration-01").rename(builder.directory / "iteration-99")
    assert [entry["iteration"] for entry in collect_results(builder.directory)["iterations"]] == [0, 99, 100]


def test_an_evaluation_without_sampling(builder: RunBuilder) -> None:
    builder.evaluation(0, majority=None, pass_at={})
    (entry,) = collect_results(builder.directory)["iterations"]
    assert entry["majority"] is None
    assert entry["pass_at"] == {}


def test_pass_at_is_ordered_by_k(builder: RunBuilder) -> None:
    builder.evaluation(0, pass_at={"32": 0.9, "8": 0.8, "1": 0.5})
    (entry,) = collect_results(builder.directory)["iterations"]
    assert list(entry["pass_at"]) == ["1", "8", "32"]


def test_a_stage_unknown_to_the_report_keeps_its_seconds(builder: RunBuilder) -> None:
    builder.evaluation(0)
    builder.stage(0, "audit", 7.0)
    (entry,) = collect_results(builder.directory)["iterations"]
    assert list(entry["seconds"].items()) == [("evaluation", 1.5), ("audit", 7.0)]


def without_seconds(path: Path) -> str:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(part) for key, part in value.items() if key != "seconds"}
        return [strip(part) for part in value] if isinstance(value, list) else value

    return json.dumps(strip(json.loads(path.read_text())))


def test_two_runs_differ_in_their_seconds_only(tmp_path: Path) -> None:
    files = []
    for name, slower in (("a", 0.0), ("b", 5.0)):
        builder = RunBuilder(tmp_path / name)
        builder.slower = slower
        builder.base()
        builder.iteration(1)
        files.append(write_results(builder.directory))
    assert files[0].read_bytes() != files[1].read_bytes()
    assert without_seconds(files[0]) == without_seconds(files[1])


def test_the_file_is_stable_and_leaves_nothing_behind(run_dir: Path) -> None:
    path = write_results(run_dir)
    first = path.read_bytes()
    assert path == run_dir / "results.json"
    assert write_results(run_dir).read_bytes() == first
    assert first.startswith(b'{\n "task": "arithmetic",\n "method": "irpo",\n "iterations": [')
    assert not list(run_dir.glob(".*.tmp"))


def test_summary(run_dir: Path) -> None:
    results = collect_results(run_dir)
    results["iterations"][1]["majority"] = None
    rows = summary_rows(results)
    assert rows == [
        ("0", "50.0", "42.0\u201354.0", "53.0", "\u2013", "0.1"),
        ("1", "65.0", "57.0\u201369.0", "\u2013", "272", "0.3"),
        ("2", "80.0", "72.0\u201384.0", "83.0", "272", "0.5"),
    ]
    assert all(len(row) == len(SUMMARY_COLUMNS) for row in rows)


@pytest.mark.parametrize("text", [None, "name: [", "name: demo\nunknown: 1\n"])
def test_a_directory_that_is_no_run(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        collect_results(tmp_path)
