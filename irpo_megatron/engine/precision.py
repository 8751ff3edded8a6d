"""What the model computes with: `PrecisionConfig` as fields of Megatron-Core, and whether this machine can.

The measurements behind the numbers here stand in docs/precision.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from irpo_megatron.artifacts import Json
from irpo_megatron.config import Fp8Config, PrecisionConfig
from irpo_megatron.errors import UserError
from irpo_megatron.nvidia_packages import has_transformer_engine, require_transformer_engine

Version = tuple[int, int]


@dataclass(frozen=True)
class _Demand:
    """What Transformer Engine 2.9 to 2.11 asks of a machine for a recipe; versions are (major, minor)."""

    capability: Version
    """The GPU's compute capability, or higher."""
    below: Version = (99, 0)
    """A compute capability from which on there are no kernels yet."""
    cuda: Version = (12, 1)
    """The CUDA version that torch is built with, or newer."""


_DEMANDS = {
    "delayed": _Demand((8, 9)),
    "tensorwise": _Demand((8, 9)),
    "blockwise": _Demand((9, 0), cuda=(12, 9)),
    "mxfp8": _Demand((10, 0), below=(12, 0)),
}

_LEAST_TOLERANCE = 1e-5

# Standard deviation over pairs, in nats, of what rounding alone leaves of (log pi - log pi_ref)(chosen) - (rejected).
# In fp32: a few units in the last place of sums near -500.
_LOG_RATIO_SPREAD = {"fp32": 1e-4, "bf16": 0.5, "blockwise": 0.75, "mxfp8": 0.75, "tensorwise": 2.0, "delayed": 2.0}
_STANDARD_DEVIATIONS = 5.0


def transformer_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of `TransformerConfig`."""
    dtype = _torch_dtype(precision)
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "autocast_dtype": dtype,
        "bf16": precision.dtype == "bf16",
        # A product that cuBLAS computes in parts must add them up in fp32: how it is cut depends on the batch, and a
        # sequence's log-prob should depend on the batch as little as possible.
        "disable_bf16_reduced_precision_matmul": precision.dtype == "bf16",
    }
    return fields if precision.fp8 is None else fields | _fp8_fields(precision.fp8)


def _fp8_fields(fp8: Fp8Config) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "first_last_layers_bf16": fp8.first_layers_bf16 + fp8.last_layers_bf16 > 0,
        "num_layers_at_start_in_bf16": fp8.first_layers_bf16,
        "num_layers_at_end_in_bf16": fp8.last_layers_bf16,
    }
    if fp8.recipe == "delayed":
        fields |= {
            "fp8_margin": fp8.margin,
            "fp8_amax_history_len": fp8.amax_history,
            # Transformer Engine's default, not Megatron-Core's: with that, the last maximum alone, a history is idle.
            "fp8_amax_compute_algo": "max",
            # Maxima are exchanged within a model replica. Over all data-parallel ranks, as is Megatron-Core's default,
            # they would wait for each other in every micro-batch, and packed ranks need not have equally many.
            "tp_only_amax_red": True,
        }
    return fields


def optimizer_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of `OptimizerConfig`; main weights and moments are fp32 by its own defaults."""
    return {
        "params_dtype": _torch_dtype(precision),
        "bf16": precision.dtype == "bf16",
        "fp8_recipe": precision.fp8.recipe if precision.fp8 is not None else None,
    }


def _torch_dtype(precision: PrecisionConfig) -> torch.dtype:
    return torch.bfloat16 if precision.dtype == "bf16" else torch.float32


def step_zero_tolerance(precision: PrecisionConfig, *, beta: float = 0.1, pairs: int = 16) -> float:
    """How far the DPO term of the first step may be from ln 2, where policy and reference are one model.

    The two passes batch the same sequences differently, so they round differently. In fp32 that is far below 1e-5. In
    bf16 and FP8 a pair's margin is off by beta times a few tenths of a nat to two nats, with either sign, and the mean
    over the batch by 1 / sqrt(pairs) of that; -log sigmoid passes on half. Five standard deviations are allowed: with
    the paper's beta and batch 0.031 in bf16, 0.047 and 0.125 in FP8 by blocks and by whole tensors. Another
    checkpoint's reference shifts the term by 0.05 to 0.34 in the demo, on completions of 27 tokens only.

    Args:
        beta: Of the DPO term.
        pairs: In the global batch.
    """
    spread = _LOG_RATIO_SPREAD[precision.fp8.recipe if precision.fp8 is not None else precision.dtype]
    return max(_LEAST_TOLERANCE, _STANDARD_DEVIATIONS * beta * spread / 2 / math.sqrt(pairs))


def numerics_key(precision: PrecisionConfig) -> Json:
    """What a stored log-prob was computed with, as far as it matters beyond rounding."""
    return {
        **precision.model_dump(mode="json"),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "layers": "transformer-engine" if uses_transformer_engine(precision) else "torch",
    }


def uses_transformer_engine(precision: PrecisionConfig) -> bool:
    """Whether the decoder's layers are Transformer Engine's, rather than the project's own on plain torch.

    In fp32 they are not: Transformer Engine 2.9 has no attention over packed sequences then.

    Raises:
        UserError: CUDA is there, and a Transformer Engine that Megatron-Core is not tested with.
    """
    return torch.cuda.is_available() and has_transformer_engine() and precision.dtype == "bf16"


def check_precision(precision: PrecisionConfig) -> None:
    """Refuse what this machine cannot compute with, before a model is built.

    Raises:
        UserError: FP8 is asked for, and CUDA or Transformer Engine is missing, or the GPU or CUDA cannot do the recipe.
    """
    if precision.fp8 is None:
        return
    recipe = precision.fp8.recipe
    demand, asked = _DEMANDS[recipe], f"precision.fp8.recipe = {recipe}"
    if not torch.cuda.is_available():
        raise UserError(
            f"{asked}, and there is no CUDA device",
            "FP8 matrix products are Transformer Engine's, which needs CUDA",
            "set precision.fp8=null: fp32 and bf16 run anywhere",
        )
    require_transformer_engine(asked)
    capability = torch.cuda.get_device_capability()
    if not demand.capability <= capability < demand.below:
        able = [name for name, other in _DEMANDS.items() if other.capability <= capability < other.below]
        bound = f", below {_dotted(demand.below)}" if capability >= demand.below else ""
        raise UserError(
            f"{asked}, and {torch.cuda.get_device_name()} has compute capability {_dotted(capability)}",
            f"recipe {recipe} needs compute capability {_dotted(demand.capability)} or higher{bound}",
            f"this GPU can do {', '.join(able)}" if able else "set precision.fp8=null",
        )
    cuda = _cuda_version()
    if cuda < demand.cuda:
        raise UserError(
            f"{asked}, and torch is built with CUDA {_dotted(cuda)}",
            f"recipe {recipe} needs CUDA {_dotted(demand.cuda)} or newer",
            "install torch for a newer CUDA, or choose another recipe",
        )


def _cuda_version() -> Version:
    major, minor = (torch.version.cuda or "0.0").split(".")[:2]
    return int(major), int(minor)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
