"""The files that weights come in: safetensors, and the one pickle of old folders, of which only tensors are read.

Both are mapped into memory and sliced: what is read is copied out, and the mapping ends with the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import ModelFolder, open_model_folder, read_tensor_entries

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What weights are stored in, by safetensors' name."""


def open_folder(path: Path) -> ModelFolder:
    """A model folder, old ones with a single `pytorch_model.bin` included.

    Raises:
        UserError: as `open_model_folder`; or the pickle holds anything but tensors.
    """
    return open_model_folder(path, names_in_pickle=lambda file: _load(file).keys())


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor; its type by safetensors' name."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_headers(file: Path) -> dict[str, Header]:
    """Of every tensor in a file, by name."""
    if file.suffix == ".bin":
        names = {dtype: name for name, dtype in DTYPES.items()}
        return {
            name: Header(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), tensor.nbytes)
            for name, tensor in _load(file).items()
        }
    return {
        name: Header(entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in read_tensor_entries(file).items()
    }


@contextlib.contextmanager
def open_tensors(file: Path) -> Iterator[Callable[[str], Any]]:
    """A file's tensors by name, to be sliced while it is open."""
    if file.suffix == ".bin":
        yield _load(file).__getitem__
        return
    with safe_open(file, framework="pt") as tensors:
        yield tensors.get_slice


def _load(file: Path) -> dict[str, torch.Tensor]:
    """What a pickle of tensors holds; anything that it could run is refused, not run."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not (isinstance(loaded, dict) and all(isinstance(value, torch.Tensor) for value in loaded.values())):
            raise ValueError("it holds more than tensors by name")
    except Exception as error:  # whatever a pickle may lead torch to
        raise UserError(
            f"{file}: {error}",
            "of a pickle only tensors by name are read, in the format of torch 1.6 and newer: it could run code",
            "get the folder with safetensors, or from a source that you trust",
        ) from error
    return loaded
