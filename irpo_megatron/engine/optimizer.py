"""Megatron-Core's data-parallel wrapper, AdamW and learning-rate schedule, as one thing that steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from irpo_megatron.config import TrainingConfig
from irpo_megatron.engine import torch_adam
from irpo_megatron.engine.bucket_padding import keep_bucket_padding
from irpo_megatron.engine.model import as_computed
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Policy
from irpo_megatron.engine.precision import optimizer_fields

# AdamW's state is saved like the weights that it belongs to, so that any layout can go on from it.
_RESHARDABLE = {"distrib_optim_sharding_type": "fully_reshardable"}


class NonFiniteGradient(RuntimeError):
    """The gradient norm is not a finite number; the parameters have not been touched."""


class Optimizer:
    """The wrapped model, its AdamW and its learning-rate schedule.

    Main weights and AdamW's moments are fp32 and cut over the data- and context-parallel ranks.

    Attributes:
        model: The data-parallel wrappers of this rank's groups of layers, to run forward and backward.
    """

    def __init__(self, model: Sequence[Policy], training: TrainingConfig, place: Place, *, steps: int) -> None:
        """Wrap `model` for training of `steps` optimizer steps."""
        self._on_cuda = place.device.type == "cuda"
        self._clip = training.clip_gradient
        self.model = _wrap(model, on_cuda=self._on_cuda)
        self._adam = get_megatron_optimizer(_adam_config(training, place), self.model)
        keep_bucket_padding(self._adam)
        self._fuse()
        self._schedule = _schedule(self._adam, training, steps)

    def zero_gradients(self) -> None:
        for wrapped in self.model:
            wrapped.zero_grad_buffer()
        self._adam.zero_grad()

    def step(self) -> tuple[float, float]:
        """Clip the accumulated gradient and update the parameters.

        Returns:
            (gradient norm before clipping, learning rate used).

        Raises:
            NonFiniteGradient: before anything is updated.
        """
        self._adam.prepare_grads()
        norm = float(self._adam.get_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteGradient(f"gradient norm is {norm}")
        self._schedule.step(increment=1)
        if self._clip > 0:
            for part in self._adam.chained_optimizers:
                clip_grad_by_total_norm_fp32(part.get_parameters(), max_norm=self._clip, total_norm=norm)
        self._adam.step_with_ready_grads()
        return norm, float(self._adam.param_groups[0]["lr"])

    def gather_weights(self) -> None:
        """Let every rank have every updated weight, where that would otherwise happen during the next forward pass."""
        for wrapped in self.model:
            if wrapped.ddp_config.overlap_param_gather:
                wrapped.start_param_sync(force_sync=True)

    def sharded_state(self, model_state: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
        """AdamW's and the schedule's state, for a distributed checkpoint."""
        if is_loading:
            torch_adam.make_room(self._adam)
        return {
            "optimizer": self._adam.sharded_state_dict(model_state, is_loading=is_loading, metadata=_RESHARDABLE),
            "schedule": self._schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `sharded_state` saved."""
        torch_adam.load_state(self._adam, state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._fuse()

    def _fuse(self) -> None:
        """Let torch's AdamW go through memory once a step on a CPU too, as NVIDIA's does on a GPU."""
        for group in self._adam.param_groups:
            group["fused"] = not self._on_cuda


def _wrap(model: Sequence[Policy], *, on_cuda: bool) -> list[DistributedDataParallel]:
    """Data-parallel wrappers of a rank's groups of layers; the schedule is told how to treat their gradients."""
    distributed = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        # Hidden behind computation where there are streams to do so; elsewhere it would only be out of order.
        overlap_grad_reduce=on_cuda,
        overlap_param_gather=on_cuda,
        grad_reduce_in_fp32=True,
    )
    wrapped = [
        DistributedDataParallel(
            chunk.config,
            distributed,
            as_computed(chunk),
            # Gradients of the later groups of layers come first, those of the first group last of all.
            disable_bucketing=number > 0,
        )
        for number, chunk in enumerate(model)
    ]
    config = model[0].config
    config.finalize_model_grads_func = sum_gradients
    config.no_sync_func = [chunk.no_sync for chunk in wrapped]
    if on_cuda:
        config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    if len(wrapped) == 1:  # Megatron-Core wants no lists where the pipeline is not interleaved
        for name in ("no_sync_func", "grad_sync_func"):
            functions = getattr(config, name)
            setattr(config, name, functions and functions[0])
    return wrapped


def _adam_config(training: TrainingConfig, place: Place) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=training.learning_rate,
        min_lr=training.min_learning_rate,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_eps=training.adam_epsilon,
        clip_grad=training.clip_gradient,
        use_distributed_optimizer=True,
        overlap_param_gather=place.device.type == "cuda",
        **optimizer_fields(place.precision),
    )


def _schedule(adam: Any, training: TrainingConfig, steps: int) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        adam,
        init_lr=0.0,
        max_lr=training.learning_rate,
        min_lr=training.min_learning_rate,
        lr_warmup_steps=training.warmup_steps,
        # One more than there are, so that the last step still moves; at least one more than the warm-up, which a short
        # iteration may not finish.
        lr_decay_steps=max(steps, training.warmup_steps) + 1,
        lr_decay_style=training.schedule,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )


def sum_gradients(model: list[torch.nn.Module], num_tokens: torch.Tensor | None, **groups: Any) -> None:
    """The one place where gradients meet a scale, and the scale is 1.

    A loss here is a sum over pairs, already divided by the pairs of the global batch. `calculate_per_token_loss` keeps
    Megatron from averaging over micro-batches, data-parallel and context-parallel ranks; leaving out its token count
    keeps it from dividing by that. What remains is the sum over micro-batches and ranks, the gradient of equation 1.
    """
    finalize_model_grads(model, None, **groups)
