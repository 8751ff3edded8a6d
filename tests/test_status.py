"""How far a run is, from its directory alone."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.claims import dead_process, on_node

from irpo_megatron.artifacts import Plan, ProgressWriter, commit_stage, open_stage, write_json
from irpo_megatron.claims import Claimant
from irpo_megatron.claims.files import WorkerRecord, shard_path, workers_directory
from irpo_megatron.config_file import validate
from irpo_megatron.errors import UserError
from irpo_megatron.status import status_rows

TREE: dict[str, Any] = {
    "name": "run",
    "task": "gsm8k",
    "iterations": 1,
    "model": {"path": "model"},
    "data": {"train": "train.jsonl", "test": "test.jsonl"},
}

# The stages of one iteration, by the method, in the order of the loop.
STAGES = {
    "irpo": ["generate", "score", "pairs", "reference", "train", "select", "convert", "evaluate"],
    "star": ["generate", "score", "pairs", "train", "select", "convert", "evaluate"],
    "sft": ["pairs", "train", "select", "convert", "evaluate"],
}


def make_run(run_dir: Path, **changes: Any) -> Path:
    """A run directory that has only its configuration."""
    run_dir.mkdir()
    tree = validate(TREE | changes, run_dir / "config.yaml").model_dump(mode="json")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return run_dir


def begin(directory: Path) -> Path:
    partial = open_stage(directory, Plan(stage="x", config={}, inputs={}))
    assert partial is not None
    return partial


def finish(directory: Path, seconds: float) -> None:
    write_json(begin(directory) / "seconds.json", {"seconds": seconds})
    commit_stage(directory)


@pytest.mark.parametrize("method", STAGES)
def test_a_run_that_has_not_begun(tmp_path: Path, method: str) -> None:
    rows = list(status_rows(make_run(tmp_path / "run", method=method)))
    assert rows == [
        ("", "problems", "missing"),
        ("0", "convert", "missing"),
        ("0", "evaluate", "missing"),
        *(("1", stage, "missing") for stage in STAGES[method]),
    ]


def test_fp8_copies_are_stages(tmp_path: Path) -> None:
    generation = {"backend": "tensorrt_llm", "tensorrt_llm": {"fp8_weights": {}}}
    stages = [row[:2] for row in status_rows(make_run(tmp_path / "run", method="sft", generation=generation))]
    base = [("", "problems"), ("0", "convert"), ("0", "quantise"), ("0", "evaluate")]
    assert stages == base + [("1", stage) for stage in (*STAGES["sft"][:-1], "quantise", "evaluate")]


def test_every_iteration_has_its_stages(tmp_path: Path) -> None:
    rows = list(status_rows(make_run(tmp_path / "run", iterations=3, method="star")))
    expected = [(str(t), stage) for t in (1, 2, 3) for stage in STAGES["star"]]
    assert [row[:2] for row in rows[3:]] == expected


def test_a_model_that_is_made_here_is_a_stage(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", model={"random": {"tokenizer": {"kind": "bpe"}}})
    finish(run_dir / "base-model", 0.25)
    assert [row for row in status_rows(run_dir)][:2] == [
        ("", "problems", "missing"),
        ("", "base-model", "done in 0.2 s"),
    ]


def test_done_partial_and_missing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", iterations=2)
    finish(run_dir / "problems", 1.23)
    finish(run_dir / "iteration-00" / "checkpoint-megatron", 4)
    finish(run_dir / "iteration-00" / "evaluation", 61)
    finish(run_dir / "iteration-01" / "generations", 3601.06)
    ProgressWriter(begin(run_dir / "iteration-01" / "scores"), total=12345, unit="problems", done=1000)
    begin(run_dir / "iteration-01" / "pairs")
    begin(run_dir / "iteration-02" / "checkpoint-hf")
    states = {(iteration, stage): state for iteration, stage, state in status_rows(run_dir)}
    told = {key: state for key, state in states.items() if state != "missing"}
    assert told == {
        ("", "problems"): "done in 1.2 s",
        ("0", "convert"): "done in 4.0 s",
        ("0", "evaluate"): "done in 61.0 s",
        ("1", "generate"): "done in 3,601.1 s",
        ("1", "score"): "partial: 1,000 of 12,345 problems",
        ("1", "pairs"): "partial",
        ("2", "convert"): "partial",
    }
    assert len(states) == 3 + 2 * 8


def test_workers_that_sample(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    partial = begin(run_dir / "iteration-01" / "generations")
    with Claimant(partial, lease_seconds=60, identity=on_node("node-a")) as worker:
        worker.announce({"x-0": 4000, "x-1": 4000, "x-2": 4000})
        shard_path(partial, "x-0").touch()
        for name in ("node-b", "here"):
            identity = dead_process() if name == "here" else on_node("node-b")
            path = workers_directory(partial) / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            record = WorkerRecord(
                identity=identity,
                lease_seconds=60,
                state="sampling",
                samples=2000,
                tokens=700_000,
                seconds=100.0,
                running={"x-1": 1000},
            )
            write_json(path, record.as_json())
        long_ago = time.time() - 3600
        os.utime(workers_directory(partial) / "here.json", (long_ago, long_ago))
        rows = list(status_rows(run_dir))
    start = next(index for index, row in enumerate(rows) if row[1] == "generate")
    assert rows[start] == ("1", "generate", "partial: 5,000 of 12,000 samples")
    assert [row[:2] for row in rows[start + 1 : start + 5]] == [("", "")] * 4
    shards, *workers = (row[2] for row in rows[start + 1 : start + 5])
    assert shards == "  shards: 1 done, 1 running, 1 waiting; about 6 min left"
    assert sorted(re.sub(r"\d+ s ago", "N s ago", worker) for worker in workers) == [
        "  node-a 7: starting, 0 samples, last heard of N s ago",
        "  node-b 7: sampling, 2,000 samples, 7,000 tokens/s, last heard of N s ago",
        f"  {dead_process().host} {os.getpid()}: dead, 2,000 samples, 7,000 tokens/s, last heard of 60 min ago",
    ]
    assert rows[start + 5][1] == "score"
    commit_stage(run_dir / "iteration-01" / "generations")
    assert all(row[1] for row in status_rows(run_dir))


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list(status_rows(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere" / "config.yaml") in caught.value.seen
    assert caught.value.rule == "a run directory holds the config.yaml of its run"
    assert caught.value.remedy == "name a run directory"


def test_a_config_that_is_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("- name\n")
    with pytest.raises(UserError, match="holds a list"):
        list(status_rows(tmp_path))


def test_a_config_of_another_version(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    with (run_dir / "config.yaml").open("a") as file:
        file.write("optimizer: adam\n")
    with pytest.raises(UserError) as caught:
        list(status_rows(run_dir))
    assert caught.value.seen == f"{run_dir / 'config.yaml'}: unknown key optimizer"
    assert caught.value.rule == "optimizer: only the keys that `irpo config` prints exist"
    assert caught.value.remedy == "correct the file or the override"


def test_looking_changes_nothing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    list(status_rows(run_dir))
    assert [path.name for path in run_dir.rglob("*")] == ["config.yaml"]
