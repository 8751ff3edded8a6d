"""The training stage: M_t from M_{t-1} on the iteration's pairs.

    python -m irpo_megatron.process irpo_megatron.training.stage REQUEST.json

Writes `checkpoints/step-NNNNNN` for every candidate, and `metrics.jsonl`. A killed stage goes on from `resume/`,
exactly: the order of the data is a function of the seed, and AdamW's moments and the schedule are in the checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Sequence

import torch.distributed as dist

from irpo_megatron.artifacts import step_of
from irpo_megatron.config import TrainingConfig
from irpo_megatron.engine.checkpoint import load_training, read_config, save_model, save_training
from irpo_megatron.engine.loading import load_policy
from irpo_megatron.engine.optimizer import Optimizer
from irpo_megatron.engine.parallel import Place, parallel_world
from irpo_megatron.records import Pair, ReferenceLogProb, read_rows
from irpo_megatron.requests import TrainRequest
from irpo_megatron.training.batches import (
    PairBatch,
    WeightedPair,
    pair_batch,
    share_of_rank,
    step_indices,
    steps_an_epoch,
)
from irpo_megatron.training.metrics import MetricsLog
from irpo_megatron.training.resume import (
    candidate_steps,
    checkpoint_path,
    drop_resume_points,
    latest_resume_point,
    resume_path,
)
from irpo_megatron.training.rows import row_id
from irpo_megatron.training.step import train_step

logger = logging.getLogger(__name__)


def run(request: TrainRequest) -> None:
    """Train, checkpoint, log."""
    pairs = load_pairs(request)
    with parallel_world(request.parallel, threads=request.launch.threads) as place:
        train(request, pairs, place)


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


def planned_steps(training: TrainingConfig, pairs: Sequence[WeightedPair]) -> int:
    """Optimizer steps of the iteration's first training, which its schedule spans.

    A retraining takes its learning rates from the same schedule and stops where the best candidate stood on it.
    """
    trained_on = sum(not item.pair.held_out for item in pairs)
    steps = training.epochs * steps_an_epoch(trained_on, training.global_batch_size)
    return steps if training.max_steps is None else min(steps, training.max_steps)


def train(request: TrainRequest, pairs: Sequence[WeightedPair], place: Place) -> None:
    """All optimizer steps of the iteration, from wherever a killed attempt was last saved."""
    schedule_steps = planned_steps(request.training, pairs)
    steps = request.retrain_steps or schedule_steps
    is_finished = checkpoint_path(request.output, steps).is_dir()  # killed between the last step and the commit
    dist.barrier()
    if place.is_main:
        drop_resume_points(request.output, all_of_them=is_finished)
    if is_finished:
        return
    config = read_config(request.checkpoint)
    model, architecture = load_policy(request.checkpoint)
    optimizer = Optimizer(model, request.training, steps=schedule_steps)
    first_step = 0
    if (saved := latest_resume_point(request.output)) is not None:
        load_training(saved, model, optimizer)
        first_step = step_of(saved.name)
        logger.info("going on after step %d of %d", first_step, steps)
    dist.barrier()  # every rank has read the resume point before any moves on and replaces it

    save_every = request.training.save_every or steps
    candidates = candidate_steps(steps, request.selection.candidates if request.retrain_steps is None else 1)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(MetricsLog(request, done=first_step, total=steps)) if place.is_main else None
        for step in range(first_step, steps):
            started = time.monotonic()
            batch = global_batch(request, pairs, step)
            result = train_step(
                optimizer,
                micro_batches_of(request, batch, place),
                loss=request.loss,
                pairs_in_global_batch=len(batch),
                vocabulary=architecture.vocabulary,
                place=place,
                is_step_zero=step == 0,
            )
            done = step + 1
            if log is not None:
                log.write(done, result, batch, seconds=time.monotonic() - started)
            if done in candidates:
                save_model(checkpoint_path(request.output, done), model, config)
            if done < steps and (done in candidates or done % save_every == 0):
                save_training(resume_path(request.output, done), model, optimizer, config)
                if place.is_main and saved is not None:
                    shutil.rmtree(saved)
                saved = resume_path(request.output, done)
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


def micro_batches_of(request: TrainRequest, batch: Sequence[WeightedPair], place: Place) -> list[PairBatch]:
    """This data-parallel rank's share of a global batch, as tensors."""
    share = share_of_rank(
        batch,
        micro_batch_size=request.training.micro_batch_size,
        data_rank=place.data_rank,
        data_size=place.data_size,
    )
    with_rejected = request.reference is not None
    return [pair_batch(micro, with_rejected=with_rejected, device=place.device) for micro in share]
