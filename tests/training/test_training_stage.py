"""The training stage in its own processes: resumption to the bit, and guards that name rows."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.events import events_of
from support.pairs import hurtful_pairs
from support.stages import (
    ONE_THREAD,
    import_model,
    run_reference,
    run_request,
    run_training,
    train_request,
    write_pairs,
)
from support.tiny_model import make_llama

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.config import ConversionConfig, LossConfig, ParallelConfig, SelectionConfig, TrainingConfig
from irpo_megatron.errors import StageError, UserError
from irpo_megatron.records import ReferenceLogProb, read_rows, write_rows
from irpo_megatron.request_files import events_path
from irpo_megatron.requests import ExportRequest, TrainRequest
from irpo_megatron.training.identity import IDENTITY
from irpo_megatron.training.rows import row_id

TRAINING = TrainingConfig(
    global_batch_size=4,
    micro_batch_tokens=100,
    learning_rate=1e-3,
    warmup_steps=4,
    schedule="cosine",
    save_every=2,
    epochs=2,
)
STEPS = 12  # 22 pairs in batches of 4, twice


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("training")
    folder = make_llama(root / "hf", vocab_size=29)
    checkpoint = import_model(folder, root / "megatron")
    pairs = write_pairs(root / "pairs", hurtful_pairs(22, vocabulary=29))
    reference = run_reference(
        root / "reference", pairs=pairs, checkpoint=checkpoint, parallel=ParallelConfig(), training=TRAINING
    )
    return {"root": root, "folder": folder, "checkpoint": checkpoint, "pairs": pairs, "reference": reference}


def _request(world: dict[str, Path], name: str, **changes: Any) -> TrainRequest:
    fields: dict[str, Any] = {"training": TRAINING, "selection": SelectionConfig(candidates=2, held_out=5)} | changes
    reference = fields.pop("reference", world["reference"])
    return train_request(
        world["root"] / name, pairs=world["pairs"], checkpoint=world["checkpoint"], reference=reference, **fields
    )


def _weights(world: dict[str, Path], request: TrainRequest) -> dict[str, torch.Tensor]:
    """The final weights, through the export stage."""
    output = request.output.with_name(f"{request.output.name}-hf")
    export = ExportRequest(
        output=output,
        iteration=1,
        launch=ONE_THREAD,
        conversion=ConversionConfig(),
        checkpoints={".": request.output / "checkpoints" / f"step-{STEPS:06d}"},
        model_folder=world["folder"],
    )
    run_request("irpo_megatron.conversion.export_stage", export)
    tensors: dict[str, torch.Tensor] = load_file(output / "model.safetensors")
    return tensors


def _what_was_computed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if "second" not in key} for line in metrics]


def _attempts(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    starts = [index for index, event in enumerate(events) if event["event"] == "start"]
    return [events[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def test_killed_and_resumed_is_bitwise_the_same(world: dict[str, Path]) -> None:
    undisturbed = _request(world, "undisturbed")
    expected = run_training(undisturbed)
    assert [line["step"] for line in expected] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in (undisturbed.output / "checkpoints").iterdir()) == [
        "step-000006",
        "step-000012",
    ]
    assert not (undisturbed.output / "resume").exists()

    killed = _request(world, "killed")
    killed.output.mkdir()
    path = killed.output.with_name("killed.request.json")
    write_json(path, killed.model_dump(mode="json"))
    process = subprocess.Popen(
        [sys.executable, "-m", "irpo_megatron.process", "irpo_megatron.training.stage", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = killed.output / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 7:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed.output / "resume").is_dir()
    assert len(metrics.read_text().splitlines()) < STEPS

    assert _what_was_computed(run_training(killed)) == _what_was_computed(expected)
    events = events_of(events_path(path) / "rank-0000.jsonl")
    first, second = _attempts(events)
    assert "end" not in [event["event"] for event in first]
    assert [event["event"] for event in second][-1] == "end"
    steps = [[event["step"] for event in attempt if event["event"] == "step"] for attempt in (first, second)]
    assert steps[0] == list(range(1, max(steps[0]) + 1))
    assert steps[1] == list(range(min(steps[1]), STEPS + 1))
    assert min(steps[1]) <= max(steps[0]) + 1
    assert all(event["peak_bytes"] > 2**20 and event["tokens"] > 0 for event in events if event["event"] == "step")
    resumed_from = [event["checkpoint"] for event in second if event["event"] == "loaded"][-1]
    assert resumed_from == str(killed.output / "resume" / f"step-{min(steps[1]) - 1:06d}")
    assert resumed_from in [event["checkpoint"] for event in first if event["event"] == "saved"]
    ours, theirs = _weights(world, killed), _weights(world, undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_killed_after_its_last_step_it_is_finished_without_training_again(world: dict[str, Path]) -> None:
    request = _request(world, "finished", training=TRAINING.model_copy(update={"epochs": 1}))
    before = run_training(request)
    (request.output / "resume.leftovers").mkdir()  # killed while it tidied up
    assert run_training(request) == before, "every line, wall times included: nothing ran again"
    assert not (request.output / "resume.leftovers").exists()


def test_killed_between_checkpoint_and_resume_point_it_replaces_the_checkpoint(world: dict[str, Path]) -> None:
    request = _request(world, "between", training=TRAINING.model_copy(update={"epochs": 1}))
    before = _what_was_computed(run_training(request))
    (request.output / "checkpoints" / "step-000006").rename(request.output / "checkpoints" / "step-000006.partial")
    assert (request.output / "checkpoints" / "step-000003").is_dir()
    assert _what_was_computed(run_training(request)) == before
    assert sorted(path.name for path in (request.output / "checkpoints").iterdir()) == ["step-000003", "step-000006"]


def test_retraining_follows_the_schedule_of_the_first_training(world: dict[str, Path]) -> None:
    training = TRAINING.model_copy(update={"epochs": 1, "warmup_steps": 0, "schedule": "linear"})
    request = _request(world, "retrained", training=training, retrain_steps=3)
    rates = [line["learning_rate"] for line in run_training(request)]
    # Linear from 1e-3 to 0 over six steps and one more; the retraining stops after three.
    assert rates == pytest.approx([1e-3 * (7 - step) / 7 for step in (1, 2, 3)])


def test_a_reference_of_another_model_is_noticed_at_step_0(world: dict[str, Path]) -> None:
    wrong = world["root"] / "wrong-reference"
    shutil.copytree(world["reference"], wrong)
    shard = wrong / "reference-00000.parquet"
    rows = read_rows(shard, ReferenceLogProb)
    shifted = [ReferenceLogProb(row_id=r.row_id, log_prob=r.log_prob - 0.1 * r.tokens, tokens=r.tokens) for r in rows]
    write_rows(shard, shifted, ReferenceLogProb)
    request = _request(world, "mismatch", reference=wrong)
    with pytest.raises(StageError, match="mismatch exited with status 1: ReferenceMismatch: the DPO term at step 0 is"):
        run_training(request)
    assert not (request.output / "checkpoints").exists()


@pytest.mark.parametrize("key", ["checkpoint", "rows", "numerics"])
def test_a_reference_of_something_else_is_refused_before_training(key: str, world: dict[str, Path]) -> None:
    wrong = world["root"] / f"reference-of-other-{key}"
    shutil.copytree(world["reference"], wrong)
    write_json(wrong / IDENTITY, read_json(wrong / IDENTITY) | {key: "another"})
    request = _request(world, f"refused-{key}", reference=wrong)
    with pytest.raises(UserError, match=f"the reference log-probs of {wrong} are of another {key}"):
        run_training(request)
    assert not (request.output / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def broken_reference(world: dict[str, Path]) -> Path:
    """A reference in which the loser of pair 9 has a log-prob that is not finite."""
    broken = world["root"] / "broken-reference"
    shutil.copytree(world["reference"], broken)
    shard = broken / "reference-00000.parquet"
    pair = hurtful_pairs(22, vocabulary=29)[9]
    victim = row_id(pair.prompt_ids, pair.rejected_ids)
    rows = [
        ReferenceLogProb(row_id=r.row_id, log_prob=float("nan") if r.row_id == victim else r.log_prob, tokens=r.tokens)
        for r in read_rows(shard, ReferenceLogProb)
    ]
    assert sum(row.row_id == victim for row in rows) == 1
    write_rows(shard, rows, ReferenceLogProb)
    return broken


# Pair 9 is in the third batch of four.
IN_ORDER = TRAINING.model_copy(update={"shuffle": False, "epochs": 1, "schedule": "constant", "save_every": None})


def test_a_loss_that_is_not_finite_names_its_pairs_and_updates_nothing(
    world: dict[str, Path], broken_reference: Path
) -> None:
    request = _request(world, "broken", reference=broken_reference, training=IN_ORDER, parallel=ParallelConfig(data=2))
    said = "NonFiniteStep: the loss is not finite for the pairs train-000009/000; nothing was updated"
    with pytest.raises(StageError, match=said):
        run_training(request)
    # Two steps were taken and logged before it.
    assert len((request.output / "metrics.jsonl").read_text().splitlines()) == 2
    for rank in (0, 1):
        events = events_of(request.output.with_name("broken.events") / f"rank-000{rank}.jsonl")
        (joined,) = (event for event in events if event["event"] == "joined")
        assert (joined["data_rank"], joined["layout"]["data"], joined["device"]) == (rank, 2, "cpu")
        assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    log = request.output.with_name("broken.log").read_text()
    assert log.count('irpo_megatron/process.py", line') == 1, "the traceback of the first that failed, and no other"
    assert re.findall(r" step (\d) of 6 in \S+ s: loss", log) == ["1", "2"], "people read rank 0"


def test_a_step_that_stands_still_ends_with_the_stacks_of_all_ranks(world: dict[str, Path]) -> None:
    """Rank 0 hangs in a write, as on a file system that is gone; rank 1 waits for it."""
    launch = ONE_THREAD.model_copy(update={"stall_minutes": 0.25})
    request = _request(world, "stalled", training=IN_ORDER, parallel=ParallelConfig(data=2), launch=launch)
    request.output.mkdir()
    os.mkfifo(request.output / "metrics.jsonl")
    with pytest.raises(
        StageError, match=r"nothing moved for 15 s \(last: .*\); the stacks of all ranks are in the log"
    ):
        run_training(request)
    for rank, where in ((0, "in __init__"), (1, "in train_step")):
        events = events_of(request.output.with_name("stalled.events") / f"rank-000{rank}.jsonl")
        (stall,) = (event for event in events if event["event"] == "stall")
        assert where in stall["stacks"]
        assert stall["stacks"] in request.output.with_name("stalled.log").read_text()


def test_a_bad_batch_that_may_be_left_out_leaves_no_trace(world: dict[str, Path], broken_reference: Path) -> None:
    """Every other step is what it is where the pairs of that batch do not exist."""
    one_candidate = SelectionConfig(candidates=1, held_out=5)
    skipping = _request(
        world,
        "skipping",
        reference=broken_reference,
        training=IN_ORDER.model_copy(update={"skip_bad_batches": 1}),
        selection=one_candidate,
    )
    left_out = run_training(skipping)
    assert [line["step"] for line in left_out if line["loss"] is None] == [3]
    assert left_out[2]["gradient_norm"] is left_out[2]["learning_rate"] is None

    pairs = hurtful_pairs(22, vocabulary=29)
    fewer = write_pairs(world["root"] / "fewer-pairs", pairs[:8] + pairs[12:])
    reference = run_reference(
        world["root"] / "fewer-reference",
        pairs=fewer,
        checkpoint=world["checkpoint"],
        parallel=ParallelConfig(),
        training=IN_ORDER,
    )
    request = train_request(
        world["root"] / "fewer",
        pairs=fewer,
        checkpoint=world["checkpoint"],
        reference=reference,
        training=IN_ORDER,
        selection=one_candidate,
    )
    expected = run_training(request)
    others = [line for line in left_out if line["step"] != 3]
    assert len(others) == len(expected) == 5
    for ours, theirs in zip(others, expected, strict=True):
        for name in ("loss", "dpo", "nll", "margin", "gradient_norm", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (ours["step"], name)


def test_nll_methods_log_no_terms_that_they_do_not_have(world: dict[str, Path]) -> None:
    request = _request(
        world,
        "star",
        reference=None,
        method="star",
        loss=LossConfig(alpha=0.5),
        training=TRAINING.model_copy(update={"epochs": 1}),
    )
    metrics = run_training(request)
    for line in metrics:
        assert [line[name] for name in ("dpo", "rejected_log_prob", "margin", "accuracy")] == [None] * 4
        assert line["loss"] == pytest.approx(0.5 * line["nll"], rel=1e-6)
    events = list((request.run_dir / "tensorboard").rglob("events.*"))
    assert not events, "no tracker was asked for"


def test_tensorboard_receives_what_metrics_jsonl_says(world: dict[str, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from irpo_megatron.config import TrackingConfig

    run_dir = world["root"] / "tracked-run"
    request = _request(
        world,
        "tracked",
        tracking=TrackingConfig(to=("tensorboard",)),
        run_dir=run_dir,
        training=TRAINING.model_copy(update={"epochs": 1}),
    )
    metrics = run_training(request)
    events = EventAccumulator(str(run_dir / "tensorboard" / "iteration-01"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in logged] == [line["step"] for line in metrics]
    assert [value for _, value in logged] == pytest.approx([line["loss"] for line in metrics], rel=1e-6)
    assert json.loads((request.output / "progress.json").read_text())["done"] == len(metrics)
