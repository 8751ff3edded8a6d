"""The judge of a conversion: do a folder, loaded by transformers, and a checkpoint compute the same?"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from irpo_megatron.config import ParallelConfig
from irpo_megatron.conversion.into_megatron import load_model
from irpo_megatron.conversion.out_of_megatron import CheckpointWeights
from irpo_megatron.conversion.tensor_files import open_folder
from irpo_megatron.conversion.weights import Weights
from irpo_megatron.engine.architecture import Architecture, read_architecture
from irpo_megatron.engine.checkpoint import STATE, read_config
from irpo_megatron.engine.logits import logits
from irpo_megatron.engine.model import build_model
from irpo_megatron.engine.parallel import Place, parallel_world
from irpo_megatron.engine.shards import model_shards
from irpo_megatron.errors import UserError

TOLERANCE = 1e-4
_ROWS, _TOKENS = 2, 32
# Both models stand in memory in fp32. Layers all compute alike: of a model that is larger, the first few are enough to
# tell whether it is understood, and whether their weights are right is told by comparing them one by one.
_PARAMETERS = 500_000_000


def require_same_logits(checkpoint: Path, folder: Path, place: Place) -> None:
    """Compare logits in fp32 on fixed random tokens, of as many layers as fit.

    Raises:
        RuntimeError: they differ by more than `TOLERANCE`: what is generated from would not be what was trained.
    """
    difference, layers = logit_difference(checkpoint, folder, place)
    if not difference <= TOLERANCE:  # also catches NaN
        raise RuntimeError(
            f"logits of {folder} differ from those of {checkpoint} by {difference:.2e} (first {layers} layers), "
            f"allowed {TOLERANCE:.0e}"
        )


def one_of_each(first: Path, second: Path) -> tuple[Path, Path]:
    """A Megatron checkpoint and a Hugging Face folder, given in either order.

    Raises:
        UserError: they are of one format.
    """
    pair = sorted((first, second), key=lambda path: not (path / STATE).is_dir())
    if (pair[1] / STATE).is_dir() or not (pair[0] / STATE).is_dir():
        raise UserError(
            f"{first} and {second} are of one format",
            "logits are compared between a Megatron checkpoint and a Hugging Face folder",
            "leave --logits out: equal tensors of one format compute the same",
        )
    return pair[0], pair[1]


def compare_logits(checkpoint: Path, folder: Path, *, threads: int) -> tuple[float, int]:
    """`logit_difference` in a process that does nothing else."""
    with parallel_world(ParallelConfig(), threads=threads) as place:
        return logit_difference(checkpoint, folder, place)


def logit_difference(checkpoint: Path, folder: Path, place: Place) -> tuple[float, int]:
    """The largest absolute difference between the two models' logits, and how many of their layers were computed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_config(checkpoint)
    whole = read_architecture(config)
    weights = CheckpointWeights(checkpoint, whole)
    architecture = replace(whole, layers=_layers_that_fit(weights, whole))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(architecture.vocabulary, (_ROWS, min(_TOKENS, architecture.context)), generator=generator)
    written = Weights(open_folder(folder), whole)
    (model,) = build_model(architecture, place)
    load_model([model], weights)
    for shard in model_shards([model]):
        shard.data.copy_(shard.data.to(written.dtype))  # rounded as the folder's were
    ours = logits(model, tokens.tolist(), place)[:, : architecture.vocabulary].cpu()
    safe = {"local_files_only": True, "trust_remote_code": False}
    cut = AutoConfig.from_pretrained(folder, num_hidden_layers=architecture.layers, **safe)
    with torch.no_grad():
        other = AutoModelForCausalLM.from_pretrained(
            folder, config=cut, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        theirs = other(tokens).logits
    return float((ours - theirs.flatten(0, 1)).abs().max()), architecture.layers


def _layers_that_fit(weights: CheckpointWeights, architecture: Architecture) -> int:
    once, a_layer = (
        sum(math.prod(entry.shape) for entry in weights.entries if entry.layer == layer) for layer in (None, 0)
    )
    return max(1, min(architecture.layers, (_PARAMETERS - once) // a_layer))
