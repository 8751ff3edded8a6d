"""Distributed checkpoint, of any layout -> Hugging Face weights, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from irpo_megatron.artifacts import remember_digest, remembered_digest
from irpo_megatron.conversion.finite import is_finite
from irpo_megatron.conversion.progress import Progress
from irpo_megatron.conversion.sharded_files import WeightFile, partial_file, plan_files, write_file, write_index
from irpo_megatron.conversion.table import Entry, table
from irpo_megatron.conversion.weights import tensor_shapes
from irpo_megatron.disk import require_room
from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.checkpoint import STATE
from irpo_megatron.engine.checkpoint_files import CheckpointFiles
from irpo_megatron.errors import UserError

_Named = tuple[str, torch.Tensor]

# Of a checkpoint that training goes on from.
_NOT_OF_THE_MODEL = "optimizer."


class CheckpointWeights:
    """The weights of a distributed checkpoint, known to be those of an architecture."""

    def __init__(self, directory: Path, architecture: Architecture) -> None:
        """Check every name and shape; only the metadata is read.

        Raises:
            UserError: a tensor is missing, unknown, of another shape, or of another type than the others.
        """
        self._directory = directory
        self._files = CheckpointFiles(directory / STATE)
        self.entries = tuple(table(architecture))
        self._check(architecture)
        self.dtype = self._files.dtypes[self.entries[0].key]

    def read(self, entry: Entry) -> torch.Tensor:
        """A whole tensor of one layer, without padding.

        Raises:
            UserError: a file is damaged, or a number in it is not finite.
        """
        return self._read(entry, (0,) * len(entry.shape), entry.shape)

    def fill(self, target: torch.Tensor, entry: Entry, *offset: int) -> None:
        """Copy a part of a tensor of one layer, as `Weights.fill` does: rows beyond it become 0.

        Raises:
            UserError: a file is damaged, or a number in it is not finite.
        """
        rows = min(target.shape[0], max(0, entry.shape[0] - offset[0]))
        target[:rows].copy_(self._read(entry, offset, (rows, *target.shape[1:])))
        target[rows:].zero_()

    def _read(self, entry: Entry, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        if entry.layer is None:
            tensor = self._files.read(entry.key, (offset, shape))
        else:
            tensor = self._files.read(entry.key, ((entry.layer, *offset), (1, *shape)))[0]
        if not is_finite(tensor):
            raise UserError(
                f"{entry.key} of layer {entry.layer} in {self._directory} holds NaN or infinity",
                "weights are finite numbers",
                "choose an earlier checkpoint: training diverged, or the file is damaged",
            )
        return tensor

    def _check(self, architecture: Architecture) -> None:
        shapes = {name: shape for name, shape in self._files.shapes.items() if not name.startswith(_NOT_OF_THE_MODEL)}
        expected = {
            entry.key: entry.shape if entry.layer is None else (architecture.layers, *entry.shape)
            for entry in self.entries
        }
        for names, what in ((expected.keys() - shapes.keys(), "lacks"), (shapes.keys() - expected.keys(), "also has")):
            if names:
                raise UserError(
                    f"{self._directory} {what} {', '.join(sorted(names))}",
                    "a checkpoint has exactly the tensors that its config.json implies",
                    "restore its config.json, or write the checkpoint again",
                )
        # The vocabulary may be padded, for a layout that it does not divide by.
        padded = {entry.key for entry in self.entries if entry.layer is None and entry.cut == 0}
        for name, shape in expected.items():
            rows = max(shapes[name][0], shape[0]) if name in padded else shape[0]
            if shapes[name] != (rows, *shape[1:]):
                raise UserError(
                    f"{name} of {self._directory} is {shapes[name]}",
                    f"by config.json it should be {shape}",
                    "restore its config.json, or write the checkpoint again",
                )
        dtypes = {self._files.dtypes[name] for name in expected}
        if len(dtypes) > 1:
            raise UserError(
                f"{self._directory} holds weights in {', '.join(sorted(map(str, dtypes)))}",
                "all weights have one type",
                "write the checkpoint again",
            )


def write_weights(
    folder: Path,
    weights: CheckpointWeights,
    *,
    dtype: torch.dtype,
    threads: int,
    progress: Progress,
) -> None:
    """Write `folder`'s safetensors, and their index; files that a killed attempt finished are kept.

    Memory: for each file at work two tensors of a layer, the one that is written and the one that is read.

    Args:
        threads: Files written at a time.
        progress: Told of the tensors of the files that are written.

    Raises:
        UserError: the checkpoint is damaged, or there is not enough room.
    """
    files = plan_files(tensor_shapes(weights.entries), dtype)

    def tensors(file: WeightFile) -> Iterator[_Named]:
        for tensor in _ahead(tensors_of(file, weights.entries, weights.read)):
            yield tensor
            advance(1)

    def write(file: WeightFile) -> None:
        remember_digest(folder / file.name, write_file(folder, file, tensors(file)))

    missing = [file for file in files if not _is_written(folder / file.name, file)]
    advance = progress(sum(len(file.shapes) for file in missing))
    for file in missing:
        partial_file(folder, file).unlink(missing_ok=True)  # of an attempt that was killed: it takes room
    require_room(sum(file.bytes for file in missing), folder)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, missing))  # which raises what a thread raised
    write_index(folder, files)


def _is_written(path: Path, file: WeightFile) -> bool:
    return remembered_digest(path) is not None and path.stat().st_size == file.bytes


def _ahead(tensors: Iterator[_Named]) -> Iterator[_Named]:
    """The same, each read while the one before it is written."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, tensors, None)
        while (tensor := coming.result()) is not None:
            coming = reader.submit(next, tensors, None)
            yield tensor


def tensors_of(file: WeightFile, entries: Iterable[Entry], read: Callable[[Entry], torch.Tensor]) -> Iterator[_Named]:
    """Name and content of a file's tensors, in its order; each Megatron tensor is read once for all that it makes."""
    for entry in entries:
        wanted = [name for name in entry.tensors if name in file.shapes]
        if wanted:
            joined = read(entry)
            for name in wanted:
                yield name, part(joined, entry, name)
            del joined  # not needed while the next is read


def part(joined: torch.Tensor, entry: Entry, name: str) -> torch.Tensor:
    """One Hugging Face tensor out of a Megatron tensor; a view where its rows stand together."""
    parts = [joined[rows.at : rows.at + rows.count] for rows in entry.rows if rows.tensor == name]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
