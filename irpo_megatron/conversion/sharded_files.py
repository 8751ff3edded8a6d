"""The weight files of a Hugging Face folder: which tensor goes where, and writing one file as its tensors come.

The format (github.com/huggingface/safetensors, README): 8 bytes, the header's length as a little-endian integer; the
header, a JSON object of names, types, shapes and byte ranges; the tensors' bytes, end to end. As all of it but the
bytes is known beforehand, a file is written front to back with one tensor in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from irpo_megatron.artifacts import Json, write_json
from irpo_megatron.conversion.finite import is_finite
from irpo_megatron.conversion.tensor_files import DTYPES
from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import WEIGHTS, WEIGHTS_INDEX

FILE_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class WeightFile:
    """A file to be: its name, and the shapes of its tensors in their order."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype

    @property
    def header(self) -> bytes:
        """The file up to its first tensor."""
        entries: Json = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in self.shapes.items():
            start, end = end, end + math.prod(shape) * self.dtype.itemsize
            entries[tensor] = {"dtype": _NAMES[self.dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def bytes(self) -> int:
        """Its size once it is whole."""
        return len(self.header) + sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize


def plan_files(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, *, file_bytes: int = FILE_BYTES
) -> list[WeightFile]:
    """Tensors in their order, filled into files of at most `file_bytes` (one larger tensor has a file of its own)."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = file_bytes
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if size > room and groups[-1]:
            groups.append({})
            room = file_bytes
        groups[-1][name] = shape
        room -= size
    if len(groups) == 1:
        return [WeightFile(WEIGHTS, groups[0], dtype)]
    names = (f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1))
    return [WeightFile(name, group, dtype) for name, group in zip(names, groups, strict=True)]


def write_index(folder: Path, files: list[WeightFile]) -> None:
    """Say which tensor is where, if there is more than one file."""
    if len(files) == 1:
        return
    total = sum(math.prod(shape) * file.dtype.itemsize for file in files for shape in file.shapes.values())
    weight_map = {tensor: file.name for file in files for tensor in file.shapes}
    write_json(folder / WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def partial_file(folder: Path, file: WeightFile) -> Path:
    """What a file is called until it is whole."""
    return folder / f".{file.name}.tmp"


def write_file(folder: Path, file: WeightFile, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Write a file; it appears whole or not at all.

    Args:
        tensors: Name and content, in the file's order, in memory of the CPU.

    Returns:
        sha256 of its bytes.

    Raises:
        UserError: a number is too large for the file's type.
    """
    partial = partial_file(folder, file)
    digest = hashlib.sha256()
    with partial.open("wb") as stream:
        for part in _parts(file, tensors):
            stream.write(part)
            digest.update(part)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(folder / file.name)
    return digest.hexdigest()


def _parts(file: WeightFile, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[bytes | memoryview]:
    yield file.header
    for (name, shape), (given, tensor) in zip(file.shapes.items(), tensors, strict=True):
        assert (given, tuple(tensor.shape)) == (name, shape), f"{given} {tuple(tensor.shape)} for {name} {shape}"
        written = tensor.to(file.dtype)
        if written.dtype != tensor.dtype and not is_finite(written):
            raise UserError(
                f"{name} has numbers that {file.dtype} cannot hold, up to {float(tensor.abs().max()):.3g}",
                f"the largest number of {file.dtype} is {torch.finfo(file.dtype).max:.3g}",
                "choose bf16 or fp32",
            )
        yield written.contiguous().flatten().view(torch.uint8).numpy().data
