"""The training stage: M_t from M_{t-1} on the iteration's pairs.

    python -m irpo_megatron.process irpo_megatron.training.stage REQUEST.json

Writes `checkpoints/step-NNNNNN` for every candidate, and `metrics.jsonl`. A killed stage goes on from `resume/`,
exactly: the order of the data is a function of the seed, and AdamW's moments and the schedule are in the checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.config import TrainingConfig
from irpo_megatron.engine.parallel import Place, parallel_world
from irpo_megatron.errors import Interrupted
from irpo_megatron.rank_log import event
from irpo_megatron.records import Pair, ReferenceLogProb, read_rows
from irpo_megatron.requests import TrainRequest
from irpo_megatron.stop import stop_requests
from irpo_megatron.training.batches import WeightedPair
from irpo_megatron.training.identity import IDENTITY, reference_identity, require_identity
from irpo_megatron.training.metrics import MetricsLog, in_words
from irpo_megatron.training.order import step_indices, steps_an_epoch
from irpo_megatron.training.resume import candidate_steps, checkpoint_path, drop_resume_points
from irpo_megatron.training.rows import row_id, unique_rows
from irpo_megatron.training.trainer import Trainer
from irpo_megatron.watchdog import Watchdog

logger = logging.getLogger(__name__)


def run(request: TrainRequest) -> None:
    """Train, checkpoint, log."""
    pairs = load_pairs(request)
    identity = check_reference(request)
    stall_seconds = 60 * request.launch.stall_minutes
    with (
        parallel_world(
            request.parallel,
            threads=request.launch.threads,
            precision=request.precision,
            timeout=timedelta(seconds=2 * stall_seconds),  # the watchdog comes first, and tells more
        ) as place,
        Watchdog(stall_seconds, rank=place.rank) as watchdog,
    ):
        train(request, pairs, place, identity, watchdog)


def load_pairs(request: TrainRequest) -> list[WeightedPair]:
    """The pairs to train on, with the reference's log-probs where the method has a DPO term.

    Pairs of held-out problems are left out, unless this is the retraining that includes them.
    """
    pairs = read_rows(request.pair_rows / "pairs.parquet", Pair)
    if request.retrain_steps is None:
        pairs = [pair for pair in pairs if not pair.held_out]
    if request.reference is None:
        return [WeightedPair(pair=pair, weight=1.0, reference_chosen=0.0, reference_rejected=0.0) for pair in pairs]
    reference = {row.row_id: row.log_prob for row in read_rows(request.reference, ReferenceLogProb)}
    return [
        WeightedPair(
            pair=pair,
            weight=1.0,
            reference_chosen=reference[row_id(pair.prompt_ids, pair.chosen_ids)],
            reference_rejected=reference[row_id(pair.prompt_ids, pair.rejected_ids)],
        )
        for pair in pairs
    ]


def check_reference(request: TrainRequest) -> Json:
    """What the reference log-probs belong to; empty for the methods without a DPO term.

    Raises:
        UserError: that is not what training is about to start from.
    """
    if request.reference is None:
        return {}
    rows = unique_rows(read_rows(request.pair_rows / "pairs.parquet", Pair))
    expected = reference_identity(request.checkpoint, rows, request.precision)
    require_identity(read_json(request.reference / IDENTITY), expected, request.reference)
    return expected


def planned_steps(training: TrainingConfig, pairs: Sequence[WeightedPair]) -> int:
    """Optimizer steps of the iteration's first training, which its schedule spans.

    A retraining takes its learning rates from the same schedule and stops where the best candidate stood on it.
    """
    trained_on = sum(not item.pair.held_out for item in pairs)
    steps = training.epochs * steps_an_epoch(trained_on, training.global_batch_size)
    return steps if training.max_steps is None else min(steps, training.max_steps)


def train(
    request: TrainRequest, pairs: Sequence[WeightedPair], place: Place, identity: Json, watchdog: Watchdog
) -> None:
    """All optimizer steps of the iteration, from wherever an earlier attempt was last saved.

    Raises:
        Interrupted: the process was asked to stop; everything up to the step that the message names is saved.
    """
    schedule_steps = planned_steps(request.training, pairs)
    steps = request.retrain_steps or schedule_steps
    is_finished = checkpoint_path(request.output, steps).is_dir()  # killed between the last step and the commit
    dist.barrier()
    if place.is_main:
        drop_resume_points(request.output, all_of_them=is_finished)
    if is_finished:
        return
    trainer = Trainer(request, place, identity, steps=schedule_steps)
    first_step = trainer.resume()
    if first_step:
        logger.info("going on after step %d of %d", first_step, steps)

    save_every = request.training.save_every or steps
    candidates = candidate_steps(steps, request.selection.candidates if request.retrain_steps is None else 1)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        log = stack.enter_context(MetricsLog(request, done=first_step, total=steps)) if place.is_main else None
        for step in range(first_step, steps):
            watchdog.beat(f"step {step + 1}")
            started = time.monotonic()
            batch = global_batch(request, pairs, step)
            result = trainer.step(batch)
            done, seconds = step + 1, time.monotonic() - started
            facts = event("step", step=done, seconds=seconds, tokens=trainer.tokens, peak_bytes=place.peak_bytes())
            logger.info("step %d of %d in %.1f s: %s", done, steps, seconds, in_words(result), extra=facts)
            if log is not None:
                log.write(done, result, batch, seconds=seconds)
            trainer.publish_saved()
            must_stop = place.any(stop.requested)
            if done in candidates:
                trainer.save_candidate(done)
            if done < steps and (must_stop or done in candidates or done % save_every == 0):
                trainer.save_resume_point(done)
            if must_stop and done < steps:
                trainer.finish_saving()
                raise Interrupted(f"stopped after step {done} of {steps}, which is saved")
    trainer.finish_saving()
    dist.barrier()
    if place.is_main:
        drop_resume_points(request.output, all_of_them=True)


def global_batch(request: TrainRequest, pairs: Sequence[WeightedPair], step: int) -> list[WeightedPair]:
    """The pairs of optimizer step `step`, the same on every rank."""
    indices = step_indices(
        step,
        pairs=len(pairs),
        global_batch_size=request.training.global_batch_size,
        shuffle=request.training.shuffle,
        seed=request.seed,
        iteration=request.iteration,
    )
    return [pairs[index] for index in indices]
