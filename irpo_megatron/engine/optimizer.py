"""Megatron-Core's data-parallel wrapper, AdamW and learning-rate schedule, as one thing that steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from irpo_megatron.config import TrainingConfig


class NonFiniteGradient(RuntimeError):
    """The gradient norm is not a finite number; the parameters have not been touched."""


class Optimizer:
    """The wrapped model, its AdamW and its learning-rate schedule.

    Attributes:
        model: The data-parallel wrapper to run forward and backward.
    """

    def __init__(self, model: GPTModel, training: TrainingConfig, *, steps: int) -> None:
        """Wrap `model` for training of `steps` optimizer steps."""
        self.model = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
        model.config.no_sync_func = self.model.no_sync
        model.config.finalize_model_grads_func = sum_gradients
        self._clip = training.clip_gradient
        self._adam = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=training.learning_rate,
                min_lr=training.min_learning_rate,
                weight_decay=training.weight_decay,
                adam_beta1=training.adam_beta1,
                adam_beta2=training.adam_beta2,
                adam_eps=training.adam_epsilon,
                clip_grad=training.clip_gradient,
                params_dtype=torch.float32,
            ),
            [self.model],
        )
        self._schedule = OptimizerParamScheduler(
            self._adam,
            init_lr=0.0,
            max_lr=training.learning_rate,
            min_lr=training.min_learning_rate,
            lr_warmup_steps=training.warmup_steps,
            # One more than there are, so that the last step still moves; at least one more than the warm-up, which a
            # short iteration may not finish.
            lr_decay_steps=max(steps, training.warmup_steps) + 1,
            lr_decay_style=training.schedule,
            start_wd=training.weight_decay,
            end_wd=training.weight_decay,
            wd_incr_steps=steps,
            wd_incr_style="constant",
        )

    def zero_gradients(self) -> None:
        self.model.zero_grad_buffer()
        self._adam.zero_grad()

    def step(self) -> tuple[float, float]:
        """Clip the accumulated gradient and update the parameters.

        Returns:
            (gradient norm before clipping, learning rate used).

        Raises:
            NonFiniteGradient: before anything is updated.
        """
        self._schedule.step(increment=1)
        self._adam.prepare_grads()
        norm = float(self._adam.get_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteGradient(f"gradient norm is {norm}")
        if self._clip > 0:
            for part in self._adam.chained_optimizers:
                clip_grad_by_total_norm_fp32(part.get_parameters(), max_norm=self._clip, total_norm=norm)
        self._adam.step_with_ready_grads()
        return norm, float(self._adam.param_groups[0]["lr"])

    def sharded_state(self, model_state: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
        """AdamW's and the schedule's state, for a distributed checkpoint."""
        return {
            "optimizer": self._adam.sharded_state_dict(model_state, is_loading=is_loading),
            "schedule": self._schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `sharded_state` saved."""
        self._adam.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


def sum_gradients(model: list[torch.nn.Module], num_tokens: torch.Tensor | None, **groups: Any) -> None:
    """The one place where gradients meet a scale, and the scale is 1.

    A loss here is a sum over pairs, already divided by the pairs of the global batch. `calculate_per_token_loss` keeps
    Megatron from averaging over micro-batches and data-parallel ranks; leaving out its token count keeps it from
    dividing by that. What remains is the sum over micro-batches and ranks, which is the gradient of equation 1.
    """
    finalize_model_grads(model, None, **groups)
