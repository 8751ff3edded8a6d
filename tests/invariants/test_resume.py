"""Interrupted training: at another layout it follows the same trajectory, at the same one it is the same to the bit."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.layouts import Variant, final_weights, metrics_of, run_variants
from support.stages import run_request
from support.worlds import (
    FEW_TOKENS,
    MANY_TOKENS,
    ONE_PAIR,
    STEPS,
    World,
    assert_same_steps,
    assert_same_weights,
    last_checkpoint,
)

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.config import ParallelConfig
from irpo_megatron.engine.checkpoint import CheckpointWriter
from irpo_megatron.errors import Interrupted, StageError
from irpo_megatron.request_files import listening_path, stop_path
from irpo_megatron.training import trainer

ONE_PROCESS = ParallelConfig()
TWO_RANKS = ParallelConfig(data=2)


def at(variant: Variant, parallel: ParallelConfig, **training: Any) -> Variant:
    """The training of `variant` taken up at another layout."""
    request = variant.training.model_copy(
        update={"parallel": parallel, "training": variant.training.training.model_copy(update=training)}
    )
    return Variant(reference=None, training=request)


@pytest.mark.parametrize(
    ("model", "layouts"),
    [
        (
            "untied",
            [
                (ParallelConfig(tensor=2, pipeline=2), FEW_TOKENS),
                (ParallelConfig(data=2), ONE_PAIR),
                (ParallelConfig(tensor=2, sequence=True, context=2), MANY_TOKENS),
                (ONE_PROCESS, FEW_TOKENS),
            ],
        ),
        (
            "tied",
            [
                (ParallelConfig(data=4), FEW_TOKENS),
                (ParallelConfig(pipeline=2, virtual_pipeline=2), FEW_TOKENS),
                (ParallelConfig(context=2, data=2), MANY_TOKENS),
                (ParallelConfig(pipeline=2, data=2), ONE_PAIR),
                (ParallelConfig(tensor=2), FEW_TOKENS),
            ],
        ),
    ],
)
def test_layouts_take_over_from_one_another(
    model: str, layouts: list[tuple[ParallelConfig, dict[str, Any]]], worlds: dict[str, World]
) -> None:
    """Four steps at each layout, the rest at the last one."""
    world = worlds[model]
    (first, training), *others = layouts
    variant = world.variant("resumed", first, **training)
    run_variants(first.world_size, [replace(variant, stop_after=4)])
    for number, (parallel, training) in enumerate(others, start=1):
        variant = at(variant, parallel, **training)
        assert len(metrics_of(variant)) == 4 * number
        is_last = number == len(others)
        run_variants(parallel.world_size, [replace(variant, stop_after=None if is_last else 4)])
    (weights,) = final_weights([last_checkpoint(variant)])
    assert_same_steps(variant, metrics_of(variant), world.expected)
    assert_same_weights(variant, weights, world.expected)


def test_a_full_state_at_tp2_pp2_goes_on_in_one_process(worlds: dict[str, World]) -> None:
    world = worlds["untied"]
    variant = world.variant("four-to-one", ParallelConfig(tensor=2, pipeline=2), **FEW_TOKENS)
    run_variants(4, [replace(variant, stop_after=11)])
    variant = at(variant, ONE_PROCESS)
    run_variants(1, [variant])
    (weights,) = final_weights([last_checkpoint(variant)])
    assert_same_steps(variant, metrics_of(variant), world.expected)
    assert_same_weights(variant, weights, world.expected)


Figures = list[dict[str, Any]]


def figures_of(variant: Variant) -> Figures:
    """The metrics without what depends on the clock."""
    return [{name: value for name, value in line.items() if "second" not in name} for line in metrics_of(variant)]


class Undisturbed:
    """Trainings that nothing interrupts, and what they come to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._done: dict[str, tuple[Figures, dict[str, torch.Tensor]]] = {}

    def variant(self, name: str, parallel: ParallelConfig, **training: Any) -> Variant:
        """A training that a test will interrupt, its reference pass done."""
        variant = self._world.variant(name, parallel, **training)
        self._like(variant)
        reference = self._world.root / self._name(parallel) / "reference"
        return Variant(None, variant.training.model_copy(update={"reference": reference}))

    def assert_same(self, variant: Variant) -> None:
        """To the bit."""
        figures, weights = self._like(variant)
        (ours,) = final_weights([last_checkpoint(variant)])
        assert figures_of(variant) == figures
        assert all(torch.equal(ours[name], weights[name]) for name in weights)
        assert not (variant.training.output / "resume").exists()

    def _name(self, parallel: ParallelConfig) -> str:
        return f"undisturbed-{parallel.world_size}"

    def _like(self, variant: Variant) -> tuple[Figures, dict[str, torch.Tensor]]:
        parallel = variant.training.parallel
        name = self._name(parallel)
        if name not in self._done:
            mine = self._world.variant(name, parallel, **FEW_TOKENS)
            run_variants(parallel.world_size, [mine])
            (weights,) = final_weights([last_checkpoint(mine)])
            self._done[name] = figures_of(mine), weights
        return self._done[name]


@pytest.fixture(scope="module")
def undisturbed(worlds: dict[str, World]) -> Undisturbed:
    return Undisturbed(worlds["untied"])


def run_stage(variant: Variant, *, watch: Callable[[], None] = lambda: None) -> None:
    """Training as the loop runs it: in processes of its own, under torchrun where there are several."""
    processes = variant.training.parallel.world_size
    run_request("irpo_megatron.training.stage", variant.training, processes=processes, watch=watch)


def request_path(variant: Variant) -> Path:
    """Where `run_request` leaves the request."""
    output = variant.training.output
    return output.with_name(f"{output.name}.request.json")


def ranks_of(variant: Variant) -> list[psutil.Process]:
    """The processes that train, in no order."""
    command = ["irpo_megatron.process", "irpo_megatron.training.stage", str(request_path(variant))]
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:  # it has ended meanwhile
            continue
        if line[-3:] == command and "torch.distributed.run" not in line:
            found.append(process)
    # A writer that a rank has forked goes by the rank's command line; killed alone, it is waited for.
    return [process for process in found if process.ppid() not in {other.pid for other in found}]


def once_it_has_done(steps: int, variant: Variant, action: Callable[[], None]) -> Callable[[], None]:
    """A `watch` that acts as soon as training is at work, and has taken so many steps."""
    metrics = variant.training.output / "metrics.jsonl"
    left_before = metrics.stat().st_mtime_ns if metrics.is_file() else None
    acted = False

    def watch() -> None:
        nonlocal acted
        if acted or not metrics.is_file() or metrics.stat().st_mtime_ns == left_before:
            return
        if len(metrics.read_bytes().splitlines()) >= steps:
            acted = True
            action()

    return watch


@pytest.mark.parametrize(("parallel", "kills"), [(ONE_PROCESS, [1, 4, 8]), (TWO_RANKS, [2, 6])], ids=["one", "two"])
def test_killed_at_any_step_it_comes_to_the_same(
    parallel: ParallelConfig, kills: list[int], undisturbed: Undisturbed
) -> None:
    """A rank is killed wherever it happens to be; half of the steps are saved."""
    variant = undisturbed.variant(f"killed-{parallel.world_size}", parallel, save_every=2, **FEW_TOKENS)
    random_ = random.Random(parallel.world_size)
    helpers: list[psutil.Process] = []

    def kill() -> None:
        time.sleep(random_.uniform(0, 0.15))  # also in the midst of saving
        ranks = ranks_of(variant)
        helpers.extend(helper for rank in ranks for helper in rank.children(recursive=True))
        random_.choice(ranks).kill()

    for steps in kills:
        with pytest.raises(StageError):
            run_stage(variant, watch=once_it_has_done(steps, variant, kill))
        assert not psutil.wait_procs(helpers, timeout=10)[1], "what a rank has started ends with it"
        assert not last_checkpoint(variant).exists(), "it was killed too late"
    run_stage(variant)
    undisturbed.assert_same(variant)


def saved_steps(variant: Variant) -> list[str]:
    return sorted(point.name for point in (variant.training.output / "resume").iterdir())


def test_sigterm_saves_and_ends(undisturbed: Undisturbed) -> None:
    variant = undisturbed.variant("terminated", ONE_PROCESS, **FEW_TOKENS)

    def terminate() -> None:
        (process,) = ranks_of(variant)
        process.send_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match=rf"stopped after step \d+ of {STEPS}, which is saved"):
        run_stage(variant, watch=once_it_has_done(3, variant, terminate))
    assert saved_steps(variant) == [f"step-{len(metrics_of(variant)):06d}"]
    run_stage(variant)
    undisturbed.assert_same(variant)


def test_a_stop_file_ends_all_ranks_at_the_same_step(undisturbed: Undisturbed) -> None:
    variant = undisturbed.variant("stopped", TWO_RANKS, **FEW_TOKENS)

    def stop() -> None:
        assert listening_path(request_path(variant)).exists()
        stop_path(request_path(variant)).touch()

    with pytest.raises(Interrupted, match=rf"stopped after step \d+ of {STEPS}, which is saved"):
        run_stage(variant, watch=once_it_has_done(3, variant, stop))
    assert saved_steps(variant) == [f"step-{len(metrics_of(variant)):06d}"]
    run_stage(variant)
    undisturbed.assert_same(variant)


def test_resume_points(undisturbed: Undisturbed, worlds: dict[str, World]) -> None:
    """The last two are kept while training runs; halves are passed over; one of another reference is refused."""
    variant = undisturbed.variant("points", TWO_RANKS, save_every=1, keep_resume_points=2, **FEW_TOKENS)
    run_variants(2, [replace(variant, stop_after=7)])
    assert saved_steps(variant) == ["step-000006", "step-000007"]

    output = variant.training.output
    other = output.with_name("of-another-reference")
    shutil.copytree(output, other)
    state = other / "resume" / "step-000007" / "training.json"
    write_json(state, read_json(state) | {"reference": {**read_json(state)["reference"], "checkpoint": "another"}})
    refused = Variant(None, variant.training.model_copy(update={"output": other}))
    with pytest.raises(Exception, match=r"the reference log-probs of .*step-000007 are of another checkpoint"):
        run_variants(2, [refused])

    newest = output / "resume" / "step-000007"
    for name in ("step-000009.partial", "step-000008.replaced"):
        shutil.copytree(newest, newest.with_name(name))
    run_variants(2, [variant])
    assert figures_of(variant)[:7] == figures_of(refused)[:7]
    undisturbed.assert_same(variant)


def test_points_written_while_training_goes_on(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA; what is written is the state of the step, whatever is computed meanwhile."""
    monkeypatch.setattr(trainer, "CheckpointWriter", lambda **_: CheckpointWriter(asynchronous=True))
    variant = undisturbed.variant("meanwhile", TWO_RANKS, save_every=1, keep_resume_points=2, **FEW_TOKENS)
    run_variants(2, [replace(variant, stop_after=7)])
    assert saved_steps(variant) == ["step-000006", "step-000007"]
    run_variants(2, [variant])
    undisturbed.assert_same(variant)


def test_a_reference_of_another_checkpoint_is_refused(undisturbed: Undisturbed) -> None:
    variant = undisturbed.variant("another", ONE_PROCESS)
    reference = variant.training.output.with_name("reference-of-another")
    assert variant.training.reference is not None
    shutil.copytree(variant.training.reference, reference)
    write_json(reference / "identity.json", {**read_json(reference / "identity.json"), "checkpoint": "another"})
    refused = Variant(None, variant.training.model_copy(update={"reference": reference}))
    with pytest.raises(Exception, match=f"the reference log-probs of {reference} are of another checkpoint"):
        run_variants(1, [refused])
    assert not (variant.training.output / "metrics.jsonl").exists()
