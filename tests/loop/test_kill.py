"""SIGKILL at a random moment of every stage: the same result, byte for byte, as an undisturbed run."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from support.command import LOOP, irpo, start_irpo

from irpo_megatron.artifacts import partial_directory

DIRECTORIES = ["generations", "pairs", "reference", "training", "selection", "checkpoint-hf", "evaluation"]


def _without_times(path: Path) -> Any:
    results = json.loads(path.read_text())
    for entry in results["iterations"]:
        del entry["seconds"]
    return results


def _kill_during(stage: Path, runs: Path, delay: float) -> None:
    """Start the loop, and kill it `delay` seconds after it has begun to work on a stage's directory."""
    process = start_irpo("run", LOOP, f"runs={runs}", "iterations=1")
    while process.poll() is None and not partial_directory(stage).exists() and not stage.exists():
        time.sleep(0.02)
    time.sleep(delay)
    process.kill()
    process.communicate()


def test_killed_in_every_stage_the_loop_ends_where_it_would_have(finished_runs: Path, runs_with_base: Path) -> None:
    random_ = random.Random(20241121)
    iteration = runs_with_base / "loop" / "iteration-01"
    for name in DIRECTORIES:
        _kill_during(iteration / name, runs_with_base, delay=random_.uniform(0, 5))
    finished = irpo("run", LOOP, f"runs={runs_with_base}", "iterations=1")
    assert finished.status == 0, finished.errors
    expected = _without_times(finished_runs / "loop" / "results.json")
    expected["iterations"] = expected["iterations"][:2]
    assert json.dumps(_without_times(runs_with_base / "loop" / "results.json")) == json.dumps(expected)
    assert not list(runs_with_base.rglob("*.partial"))
