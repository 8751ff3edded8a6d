"""The model, its optimizer and its resume points: what `stage.train` loops over."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from irpo_megatron.artifacts import Json, read_json, step_of
from irpo_megatron.engine.checkpoint import CONFIG, TRAINING, CheckpointWriter, load_training, read_config
from irpo_megatron.engine.loading import load_policy
from irpo_megatron.engine.optimizer import Optimizer
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.precision import step_zero_tolerance
from irpo_megatron.requests import TrainRequest
from irpo_megatron.training.batches import PairBatch, WeightedPair, batching_of, pair_batch, share_of_rank
from irpo_megatron.training.identity import require_identity
from irpo_megatron.training.resume import (
    checkpoint_path,
    drop_older_resume_points,
    latest_resume_point,
    resume_path,
)
from irpo_megatron.training.sequences import log_prob_head
from irpo_megatron.training.step import NonFiniteStep, StepResult, train_step

logger = logging.getLogger(__name__)


class Trainer:
    """Trains one iteration's policy, a global batch at a time."""

    def __init__(self, request: TrainRequest, place: Place, identity: Json, *, steps: int) -> None:
        """Load M_{t-1}.

        Args:
            identity: What the reference log-probs belong to.
            steps: Optimizer steps that the learning-rate schedule spans.
        """
        training = request.training
        self._request = request
        self._place = place
        self._batching = batching_of(training, place)
        self._model, architecture = load_policy(request.checkpoint, place, recompute=training.recompute)
        self._optimizer = Optimizer(self._model, training, place, steps=steps)
        self._head = log_prob_head(architecture, place, mib=training.log_prob_mib)
        self._writer = CheckpointWriter(asynchronous=place.device.type == "cuda")
        self._config = read_config(request.checkpoint)
        self._identity = identity
        self._skipped = 0
        self._is_reference = True
        """The policy is still M_{t-1}: nothing has been updated yet."""
        self.tokens = 0
        """Tokens that this rank's part of the model was handed in the last step, filler included."""

    def resume(self) -> int:
        """Go on from the last resume point, if there is one.

        Returns:
            Optimizer steps that are done.

        Raises:
            UserError: the resume point was trained against another reference.
        """
        saved = latest_resume_point(self._request.output)
        if saved is None:
            return 0
        state = read_json(saved / TRAINING)
        require_identity(state["reference"], self._identity, saved)
        self._skipped = state["skipped_batches"]
        load_training(saved, self._model, self._optimizer)
        done = step_of(saved.name)
        self._is_reference = done == self._skipped
        return done

    def step(self, batch: Sequence[WeightedPair]) -> StepResult | None:
        """One optimizer step on a global batch; None where it was left out because something in it is not finite.

        Raises:
            ReferenceMismatch, NonFiniteStep: as `train_step`, the latter once no more batches may be left out.
        """
        micro_batches = self.micro_batches(batch)
        self.tokens = sum(micro_batch.input.tokens.numel() for micro_batch in micro_batches)
        try:
            result = train_step(
                self._optimizer,
                micro_batches,
                loss=self._request.loss,
                pairs_in_global_batch=len(batch),
                place=self._place,
                step_zero_tolerance=self._step_zero_tolerance(len(batch)) if self._is_reference else None,
            )
        except NonFiniteStep as error:
            if self._skipped >= self._request.training.skip_bad_batches:
                self.finish_saving()  # what was being written is good, and the error is every rank's
                raise
            self._skipped += 1
            logger.warning("left out batch %d of %d: %s", self._skipped, self._request.training.skip_bad_batches, error)
            return None
        self._is_reference = False
        return result

    def _step_zero_tolerance(self, pairs: int) -> float:
        return step_zero_tolerance(self._request.precision, beta=self._request.loss.beta, pairs=pairs)

    def micro_batches(self, batch: Sequence[WeightedPair]) -> list[PairBatch]:
        """This data-parallel rank's share of a global batch, as tensors."""
        with_rejected = self._request.reference is not None
        share = share_of_rank(batch, self._batching, self._place, with_rejected=with_rejected)
        return [
            pair_batch(pairs, self._batching, self._place, self._head, with_rejected=with_rejected) for pairs in share
        ]

    def save_candidate(self, step: int) -> None:
        """Write the weights, which may become M_t."""
        self._optimizer.gather_weights()
        self._writer.save_model(checkpoint_path(self._request.output, step), self._model, self._config)

    def save_resume_point(self, step: int) -> None:
        """Write everything that the next steps depend on; the oldest resume points go once it is there."""
        output, keep = self._request.output, self._request.training.keep_resume_points
        self._optimizer.gather_weights()
        self._writer.save_training(
            resume_path(output, step),
            self._model,
            self._optimizer,
            {CONFIG: self._config, TRAINING: {"reference": self._identity, "skipped_batches": self._skipped}},
            then=lambda: drop_older_resume_points(output, keep=keep),
        )

    def publish_saved(self) -> None:
        """Let checkpoints appear that were being written while training went on."""
        self._writer.look()

    def finish_saving(self) -> None:
        """Wait for all checkpoints."""
        self._writer.finish()
