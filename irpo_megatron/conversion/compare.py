"""Two models, each a Hugging Face folder or a Megatron checkpoint, compared tensor by tensor and bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
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
    """What is different; None where they are equal to the bit."""


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
        raise UserError(
            f"{first} is {architecture}, {second} is {other}",
            "two models are compared whose config.json describe one architecture",
            "compare a model with its own conversion",
        )
    for entry in ours.entries:
        mine, its = ours.read(entry), theirs.read(entry)
        for name in entry.tensors:
            left, right = part(mine, entry, name), part(its, entry, name)
            yield Comparison(name, _sha256(left), _difference(left, right))


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()


def _difference(left: torch.Tensor, right: torch.Tensor) -> str | None:
    if left.dtype != right.dtype:
        narrow = min(left.dtype, right.dtype, key=lambda dtype: torch.finfo(dtype).bits)
        rounded = torch.equal(left.to(narrow), right.to(narrow))
        return f"{left.dtype} and {right.dtype}; rounded to {narrow} they are {'equal' if rounded else 'different'}"
    if torch.equal(left.view(torch.uint8), right.view(torch.uint8)):
        return None
    apart = (left.float() - right.float()).abs()
    return f"{int((left != right).sum())} of {left.numel()} numbers differ, by up to {float(apart.max()):.3g}"
