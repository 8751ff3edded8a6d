"""Two models, each a Hugging Face folder or a Megatron checkpoint, compared tensor by tensor and bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from irpo_megatron.conversion.out_of_megatron import CheckpointWeights, part
from irpo_megatron.conversion.table import Entry
from irpo_megatron.conversion.tensor_files import open_folder
from irpo_megatron.conversion.weights import Weights
from irpo_megatron.engine.architecture import Architecture, read_architecture
from irpo_megatron.engine.checkpoint import STATE, read_config
from irpo_megatron.errors import UserError


class WholeTensors(Protocol):
    """Either format, read a Megatron tensor of one layer at a time."""

    entries: tuple[Entry, ...]

    def read(self, entry: Entry) -> torch.Tensor:
        """The whole tensor."""


@dataclass(frozen=True)
class Comparison:
    """A Hugging Face tensor of both models."""

    name: str
    sha256: str
    """Of the first model's."""
    difference: str | None
    """What is different; None where they are equal."""
    rounded_to: torch.dtype | None
    """The narrower type of the two, in which they were compared; None where they have one type."""


def open_weights(path: Path) -> tuple[WholeTensors, Architecture]:
    """The weights of a model in either format.

    Raises:
        UserError: it is neither, or damaged.
    """
    if (path / STATE).is_dir():
        architecture = read_architecture(read_config(path))
        return CheckpointWeights(path, architecture), architecture
    folder = open_folder(path)
    architecture = read_architecture(folder.config)
    return Weights(folder, architecture), architecture


def compare(first: Path, second: Path) -> Iterator[Comparison]:
    """Go through both models' tensors, in the order of the model.

    Raises:
        UserError: they are models of different architectures.
    """
    (ours, architecture), (theirs, other) = open_weights(first), open_weights(second)
    if architecture != other:
        ours_, theirs_ = asdict(architecture), asdict(other)
        apart = ", ".join(f"{key} {ours_[key]} and {theirs_[key]}" for key in ours_ if ours_[key] != theirs_[key])
        raise UserError(
            f"{first} and {second} have {apart}",
            "two models are compared whose config.json describe one architecture",
            "compare a model with its own conversion",
        )
    for entry in ours.entries:
        mine, its = ours.read(entry), theirs.read(entry)
        for name in entry.tensors:
            left, right = part(mine, entry, name), part(its, entry, name)
            narrow = _narrower(left.dtype, right.dtype)
            digest = _sha256(left)
            if narrow is not None:
                left, right = left.to(narrow), right.to(narrow)
            yield Comparison(name, digest, _difference(left, right), narrow)


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def _narrower(first: torch.dtype, second: torch.dtype) -> torch.dtype | None:
    """The type that a conversion wrote, where it wrote another; None where the types are one."""
    if first == second:
        return None
    if torch.float32 not in (first, second):
        raise UserError(
            f"one model is in {first}, the other in {second}",
            "neither of fp16 and bf16 holds all numbers of the other",
            "compare each with the fp32 weights that it was made from",
        )
    return second if first == torch.float32 else first


def _difference(left: torch.Tensor, right: torch.Tensor) -> str | None:
    left, right = left.contiguous(), right.contiguous()
    different = int((left.view(torch.uint8) != right.view(torch.uint8)).view(left.numel(), -1).any(dim=1).sum())
    if not different:
        return None
    apart = float((left.float() - right.float()).abs().max())
    return f"{different} of {left.numel()} numbers differ, by up to {apart:.3g}"
