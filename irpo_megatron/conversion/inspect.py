"""What a model on disk is made of, from its headers alone, in either format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.conversion.tensor_files import open_folder, read_headers
from irpo_megatron.engine.checkpoint import STATE
from irpo_megatron.engine.checkpoint_files import CheckpointFiles

_LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")


@dataclass(frozen=True)
class TensorKind:
    """Tensors that are alike but for their layer.

    Attributes:
        cut: How each is cut, such as `2 x 1`; empty in the Hugging Face format, which keeps them whole.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    cut: str = ""


@dataclass(frozen=True)
class Description:
    """A model on disk."""

    format: str
    files: int
    file_bytes: int
    kinds: tuple[TensorKind, ...]

    @property
    def parameters(self) -> int:
        """Numbers in all."""
        return sum(kind.count * math.prod(kind.shape) for kind in self.kinds)


def describe(path: Path) -> Description:
    """Describe a Hugging Face folder or a Megatron checkpoint.

    Raises:
        UserError: it is neither, or damaged.
    """
    if (path / STATE).is_dir():
        files = sorted((path / STATE).glob("*.distcp"))
        name, kinds = "Megatron distributed checkpoint", tuple(_of_checkpoint(path / STATE))
    else:
        files = sorted(set(open_folder(path).weight_files.values()))
        name, kinds = "Hugging Face folder", tuple(_of_folder(files))
    return Description(name, len(files), sum(file.stat().st_size for file in files), kinds)


def _of_checkpoint(state: Path) -> Iterator[TensorKind]:
    files = CheckpointFiles(state)
    for name, shape in files.shapes.items():
        boxes, dtype = files.boxes(name), files.dtypes[name]
        parts = (len({offset[axis] for offset, _shape in boxes}) for axis in range(len(shape)))
        yield TensorKind(
            name=name,
            count=1,
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            bytes=math.prod(shape) * dtype.itemsize,
            cut=" x ".join(map(str, parts)),
        )


def _of_folder(files: list[Path]) -> Iterator[TensorKind]:
    alike: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for file in files:
        for name, header in read_headers(file).items():
            kind = (_LAYER.sub("*", name), header.shape, header.dtype)
            alike.setdefault(kind, []).append(header.bytes)
    for (name, shape, dtype), sizes in alike.items():
        yield TensorKind(name=name, count=len(sizes), shape=shape, dtype=dtype, bytes=sum(sizes))
