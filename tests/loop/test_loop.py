"""The finished loop: what its files say, and that users can walk away with them."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import LOOP, ROOT, irpo
from support.events import events_of

from irpo_megatron.artifacts import MANIFEST, manifest_digest, read_manifest
from irpo_megatron.model_folder import read_tensor_entries
from irpo_megatron.records import Pair, Problem, Sample, Score, read_rows
from irpo_megatron.request_files import events_path

STAGES = ["generations", "scores", "pairs", "reference", "training", "selection", "checkpoint-hf", "evaluation"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(finished_runs: Path) -> Path:
    return finished_runs / "loop"


def test_every_stage_left_a_committed_directory_and_nothing_half_done(run: Path) -> None:
    for iteration in (1, 2):
        folder = run / f"iteration-{iteration:02d}"
        assert sorted(path.name for path in folder.iterdir()) == sorted(STAGES)
        for stage in STAGES:
            assert read_manifest(folder / stage)["outputs"]
    assert not list(run.rglob("*.partial"))
    assert not list(run.rglob("*.tmp"))


def test_results_are_those_of_the_stored_samples(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert (results["task"], results["method"]) == ("arithmetic", "irpo")
    assert [entry["iteration"] for entry in results["iterations"]] == [0, 1, 2]
    gold = {problem.id: problem.answer for problem in read_rows(run / "problems" / "test.parquet", Problem)}
    for entry in results["iterations"]:
        folder = run / f"iteration-{entry['iteration']:02d}" / "evaluation"
        greedy = [row for shard in sorted(folder.glob("greedy-*.parquet")) for row in read_rows(shard, Sample)]
        right = [row.completion.rpartition("Final answer:")[2] == gold[row.prompt_id] for row in greedy]
        assert len(right) == 40
        assert entry["accuracy"] == sum(right) / 40
        low, high = entry["interval"]
        assert low < entry["accuracy"] < high
    stages = {"generate", "score", "pairs", "reference", "train", "select", "convert", "evaluate"}
    assert set(results["iterations"][1]["seconds"]) == stages


def test_pairs_are_right_against_wrong_and_made_of_the_sampled_ids(run: Path) -> None:
    folder = run / "iteration-01"
    samples = {(s.prompt_id, s.sample_index): s for s in read_rows(folder / "generations", Sample)}
    correct = {(s.prompt_id, s.sample_index): s.correct for s in read_rows(folder / "scores", Score)}
    pairs = read_rows(folder / "pairs" / "pairs.parquet", Pair)
    assert pairs
    for pair in pairs:
        loser = samples[pair.prompt_id, pair.rejected_sample]
        assert not correct[pair.prompt_id, pair.rejected_sample]
        assert (pair.rejected_ids, pair.prompt_ids) == (loser.completion_ids, loser.prompt_ids)
        if pair.chosen_sample >= 0:
            assert correct[pair.prompt_id, pair.chosen_sample]
            assert pair.chosen_ids == samples[pair.prompt_id, pair.chosen_sample].completion_ids


def test_training_starts_at_ln_2_and_logs_every_step(run: Path) -> None:
    lines = _lines(run / "metrics.jsonl")
    for iteration in (1, 2):
        mine = [line for line in lines if line["iteration"] == iteration]
        pairs = len(read_rows(run / f"iteration-{iteration:02d}" / "pairs" / "pairs.parquet", Pair))
        assert [line["step"] for line in mine] == list(range(1, math.ceil(pairs / 8) + 1))
        assert mine[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
        assert mine[0]["loss"] == pytest.approx(mine[0]["dpo"] + mine[0]["nll"], abs=1e-5)
        assert sum(line["pairs"] for line in mine) == pairs


def test_the_selected_candidate_is_the_best_and_is_what_was_converted(run: Path) -> None:
    selection = json.loads((run / "iteration-01" / "selection" / "selection.json").read_text())
    best = max(selection["candidates"], key=lambda candidate: (candidate["accuracy"], candidate["step"]))
    assert len(selection["candidates"]) == 2
    assert selection["step"] == best["step"]
    assert {candidate["problems"] for candidate in selection["candidates"]} == {12}
    held_out = {problem.id for problem in read_rows(run / "problems" / "held_out.parquet", Problem)}
    sampled = {sample.prompt_id for sample in read_rows(run / "iteration-01" / "generations", Sample)}
    assert len(held_out) == 12
    assert not held_out & sampled, "held-out problems are not trained on"


def test_checkpoints_load_in_transformers_and_pairs_in_datasets(run: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "iteration-02" / "checkpoint-hf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    sample = read_rows(run / "iteration-02" / "evaluation" / "greedy-00000.parquet", Sample)[0]
    prompt = tokenizer(sample.prompt, return_tensors="pt")
    assert tuple(prompt["input_ids"][0].tolist()) == sample.prompt_ids
    generated = model.generate(**prompt, do_sample=False, max_new_tokens=56)[0, len(sample.prompt_ids) :]
    assert tuple(generated.tolist()) == sample.completion_ids
    dataset = Dataset.from_parquet(str(run / "iteration-01" / "pairs" / "pairs.parquet"))
    assert {"prompt", "chosen", "rejected"} <= set(dataset.column_names)


def test_the_programs_of_the_pages_run(run: Path) -> None:
    """Those that read a finished run, on this one in place of the demo's."""
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("data.md", "run-directory.md"))
    programs = re.findall(r"^python - <<'PY'\n(.*?)^PY$", pages, re.DOTALL | re.MULTILINE)
    assert len(programs) == 3
    text = "".join(programs).replace("runs/arithmetic-irpo-alpha-1.0-seed-0", str(run)).replace("n-03", "n-02")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "features: ['prompt', 'chosen', 'rejected']" in done.stdout
    lines = done.stdout.splitlines()
    steps = sum(line["iteration"] == 1 for line in _lines(run / "metrics.jsonl"))
    assert [int(line.split()[0]) for line in lines[-steps:]] == list(range(1, steps + 1))


def test_a_second_start_computes_nothing(finished_runs: Path) -> None:
    run = finished_runs / "loop"
    before = {path: path.stat().st_mtime_ns for path in run.rglob(MANIFEST)}
    again = irpo("run", LOOP, f"runs={finished_runs}")
    assert again.status == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob(MANIFEST)} == before
    assert again.output.splitlines()[-1].split()[0] == "2", "the table of results is printed"


def test_no_secret_of_the_shell_is_in_any_file(finished_runs: Path, shell_secrets: dict[str, str]) -> None:
    files = [path for path in finished_runs.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert not [path for path in files if any(value.encode() in path.read_bytes() for value in shell_secrets.values())]


def test_every_process_left_its_events(run: Path) -> None:
    logs = run / "logs"
    requests = sorted(logs.glob("*.request.json"))
    assert requests
    for request in requests:
        (file,) = events_path(request).iterdir()
        assert file.name == ("worker-0000.jsonl" if "workers" in request.name else "rank-0000.jsonl")
        events = events_of(file)
        ends = [event["status"] for event in events if event["event"] == "end"]
        assert (events[0]["event"], events[-1]["event"], set(ends)) == ("start", "end", {0})
    sampling = events_of(logs / "iteration-01-generate-workers.events" / "worker-0000.jsonl")
    assert sum(event["samples"] for event in sampling if event["event"] == "shard") == 30 * 6
    assert {event["host"] for event in events_of(logs / "starts.jsonl")} == {sampling[0]["host"]}


def test_status_shows_every_stage(run: Path) -> None:
    shown = irpo("status", run).output.splitlines()
    states = [line.split(maxsplit=2) for line in shown if line.split()[0] in ("0", "1", "2")]
    assert len(states) == 2 + 2 * 8
    assert all(state.startswith("done in ") for _, _, state in states)


def test_a_stage_alone_refuses_missing_inputs_and_runs_where_they_are(runs_with_base: Path) -> None:
    early = irpo("score", LOOP, f"runs={runs_with_base}", "--iteration", "1")
    assert early.status == 2
    assert "iteration-01/generations is not there" in early.errors
    assert irpo("generate", LOOP, f"runs={runs_with_base}", "--iteration", "1").status == 0
    assert irpo("score", LOOP, f"runs={runs_with_base}", "--iteration", "1").status == 0
    assert (runs_with_base / "loop" / "iteration-01" / "scores" / MANIFEST).is_file()


def test_star_has_no_reference(runs_with_base: Path) -> None:
    overrides = ["method=star", "selection.candidates=1", "evaluation.samples=0"]
    finished = irpo("run", LOOP, f"runs={runs_with_base}", "iterations=1", *overrides)
    assert finished.status == 0, finished.errors
    folder = runs_with_base / "loop" / "iteration-01"
    assert {path.name for path in folder.iterdir()} == set(STAGES) - {"reference"}
    first = _lines(folder / "training" / "metrics.jsonl")[0]
    assert first["dpo"] is None
    assert first["loss"] == pytest.approx(first["nll"], abs=1e-6)


@pytest.fixture
def engine_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of an environment with TensorRT-LLM's stand-in, which notes its calls in `calls.jsonl`."""
    stand_in = Path(__file__).parents[1] / "support" / "fake_tensorrt_llm"
    (tmp_path / "faults.json").write_text(json.dumps({"log": str(tmp_path / "calls.jsonl")}))
    monkeypatch.setenv("FAKE_TENSORRT_LLM", str(tmp_path / "faults.json"))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{stand_in}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="needs modelopt")
def test_an_engine_that_loads_fp8_copies_and_a_training_that_is_repeated(
    runs_with_base: Path, engine_python: Path, tmp_path: Path
) -> None:
    engine = ["generation.backend=tensorrt_llm", "generation.tensorrt_llm.fp8_weights={}"]
    overrides = [*engine, f"generation.python={engine_python}", "selection.retrain=true", "evaluation.samples=0"]
    finished = irpo("run", LOOP, f"runs={runs_with_base}", "iterations=1", *overrides)
    assert finished.status == 0, finished.errors
    run = runs_with_base / "loop"
    folder = run / "iteration-01"
    assert {path.name for path in folder.iterdir()} == {*STAGES, "checkpoint-fp8"}

    base, last = run / "iteration-00" / "checkpoint-fp8", folder / "checkpoint-fp8"
    steps = sorted(path.name for path in (folder / "training" / "checkpoints").iterdir())
    candidates = [folder / "selection.partial" / "candidates" / "fp8" / step for step in steps]
    started = [call["model"] for call in _lines(tmp_path / "calls.jsonl") if call["event"] == "start"]
    assert started == [str(path) for path in (base, base, *candidates, last)]
    for evaluated, copy in (("iteration-00", base), ("iteration-01", last)):
        assert read_manifest(run / evaluated / "evaluation")["inputs"]["model_folder"] == manifest_digest(copy)
        weights = read_tensor_entries(copy / "model.safetensors")
        assert [entry["dtype"] for entry in weights.values()].count("F8_E4M3") == 2 * 7
    assert read_manifest(last)["inputs"]["model_folder"] == manifest_digest(folder / "checkpoint-hf")

    pairs = read_rows(folder / "pairs" / "pairs.parquet", Pair)
    held_out = [pair for pair in pairs if pair.held_out]
    assert held_out, "retraining uses the held-out problems' pairs"
    step = json.loads((folder / "selection" / "selection.json").read_text())["step"]
    assert len(_lines(folder / "selection" / "retrained" / "metrics.jsonl")) == step
    assert math.ceil((len(pairs) - len(held_out)) / 8) == len(_lines(folder / "training" / "metrics.jsonl"))
