"""The weights of a Hugging Face folder, read by slices and never a file at a time."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch

from irpo_megatron.conversion.finite import is_finite
from irpo_megatron.conversion.table import EMBEDDING, OUTPUT, Entry, table
from irpo_megatron.conversion.tensor_files import DTYPES, open_tensors, read_headers
from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import COMPUTED_SUFFIXES, ModelFolder


class Weights:
    """A folder's tensors, known to be those of an architecture."""

    def __init__(self, folder: ModelFolder, architecture: Architecture) -> None:
        """Check every name, shape and type; only headers are read.

        Raises:
            UserError: a tensor is missing, unknown, or of another shape or type than config.json implies.
        """
        self._folder = folder
        self.entries = tuple(table(architecture))
        shapes = tensor_shapes(self.entries)
        if architecture.tied_embeddings and {EMBEDDING, OUTPUT} <= folder.weight_files.keys():
            _require_same_as_embedding(folder)
            shapes[OUTPUT] = shapes[EMBEDDING]
        self.dtype = _check(folder, shapes)

    @property
    def bytes(self) -> int:
        """What all weights take."""
        return sum(math.prod(entry.shape) for entry in self.entries) * self.dtype.itemsize

    def fill(self, target: torch.Tensor, entry: Entry, first_row: int = 0, first_column: int = 0) -> None:
        """Copy a part of a Megatron tensor: as much from (first_row, first_column) on as `target` has room for.

        Rows beyond the tensor, where the vocabulary is padded, become 0.

        Args:
            target: [rows] or [rows, columns], of any type and device.

        Raises:
            UserError: it holds NaN or infinity.
        """
        end = first_row + target.shape[0]
        # A mapping lives as long as its file is open: what has been read does not stay in memory.
        with ExitStack() as files, torch.no_grad():
            opened: dict[str, Any] = {}
            for rows in entry.rows:
                start, stop = max(rows.at, first_row), min(rows.at + rows.count, end)
                if start >= stop:
                    continue
                if rows.tensor not in opened:
                    tensors = files.enter_context(open_tensors(self._folder.weight_files[rows.tensor]))
                    opened[rows.tensor] = tensors(rows.tensor)
                source = slice(rows.start + start - rows.at, rows.start + stop - rows.at)
                into = target[start - first_row : stop - first_row]
                if target.dim() == 1:
                    into.copy_(opened[rows.tensor][source])
                else:
                    into.copy_(opened[rows.tensor][source, first_column : first_column + target.shape[1]])
            target[max(0, entry.shape[0] - first_row) :].zero_()
        if not is_finite(target):
            raise UserError(
                f"{target.numel() - int(target.isfinite().sum())} numbers of {' + '.join(entry.tensors)} in "
                f"{self._folder.path} are NaN or infinite",
                "weights are finite numbers",
                "the folder is damaged, or its training diverged: get it again from its source",
            )

    def read(self, entry: Entry) -> torch.Tensor:
        """A whole Megatron tensor of one layer."""
        whole = torch.empty(entry.shape, dtype=self.dtype)
        self.fill(whole, entry)
        return whole


def tensor_shapes(entries: tuple[Entry, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of every Hugging Face tensor of a model, by name, in the order of the model."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        for rows in entry.rows:
            shapes[rows.tensor] = (rows.start + rows.count, *entry.shape[1:])
    return shapes


def _require_same_as_embedding(folder: ModelFolder) -> None:
    """Some folders of tied models hold the output matrix nevertheless; transformers then does not look at it."""
    with open_tensors(folder.weight_files[EMBEDDING]) as first, open_tensors(folder.weight_files[OUTPUT]) as second:
        if not torch.equal(first(EMBEDDING)[:], second(OUTPUT)[:]):
            raise UserError(
                f"{OUTPUT} of {folder.path} differs from {EMBEDDING}, and config.json has tie_word_embeddings",
                "tied embeddings are one matrix",
                "set tie_word_embeddings to false if the model was trained untied, or remove the tensor",
            )


def _check(folder: ModelFolder, shapes: dict[str, tuple[int, ...]]) -> torch.dtype:
    found = {name for name in folder.weight_files if not name.endswith(COMPUTED_SUFFIXES)}
    expected = set(shapes)
    for names, what in ((expected - found, "lacks"), (found - expected, "has, besides those of its family,")):
        if names:
            raise UserError(
                f"{folder.path} {what} the tensors {_some(names)}",
                "a checkpoint has exactly the tensors that its config.json implies",
                "restore the folder; a model without lm_head needs tie_word_embeddings in config.json",
            )
    headers = {path: read_headers(path) for path in dict.fromkeys(folder.weight_files.values())}
    found_dtypes: dict[str, str] = {}
    for name, shape in shapes.items():
        header = headers[folder.weight_files[name]][name]
        if header.shape != shape:
            raise UserError(
                f"{name} of {folder.path} is {header.shape}",
                f"by config.json it should be {shape}",
                "the weights do not belong to this config.json: restore one of them",
            )
        found_dtypes.setdefault(header.dtype, name)
    if len(found_dtypes) > 1 or not found_dtypes.keys() <= DTYPES.keys():
        raise UserError(
            f"{folder.path} holds " + ", ".join(f"{name} in {dtype}" for dtype, name in found_dtypes.items()),
            f"all weights have one type, one of {', '.join(DTYPES)}",
            "quantised folders are for inference: use the original, or convert it to one type",
        )
    return DTYPES[next(iter(found_dtypes))]


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
