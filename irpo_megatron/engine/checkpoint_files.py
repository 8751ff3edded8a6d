"""The tensors of a distributed checkpoint, read and written one at a time, with no model and no process group.

A checkpoint is torch's format as Megatron-Core uses it: a tensor is stored in boxes, each with its place in the whole;
the layers' tensors of one name are stacked along a first axis. What is read may lie across boxes, whatever layout wrote
them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from irpo_megatron.artifacts import remember_digest
from irpo_megatron.engine.checkpoint_metadata import METADATA, read_metadata
from irpo_megatron.errors import UserError

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part of a tensor begins, and its shape."""


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a checkpoint to be, in boxes that cover it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    boxes: Sequence[Box]
    read: Callable[[Box], torch.Tensor]
    """The content of a box; called once a box, from any thread, when its turn has come to be written."""


class CheckpointFiles:
    """Reads the `state/` folder of a checkpoint."""

    def __init__(self, state: Path) -> None:
        """Open it; only its metadata is read.

        Raises:
            UserError: the folder is incomplete, or its metadata is not a checkpoint's.
        """
        self._state = state
        self._metadata = read_metadata(state)
        self._boxes = {
            name: {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks}
            for name, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by name."""
        return {name: tuple(self._metadata.state_dict_metadata[name].size) for name in self._boxes}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of every tensor, by name."""
        return {name: self._metadata.state_dict_metadata[name].properties.dtype for name in self._boxes}

    def boxes(self, name: str) -> set[Box]:
        """How a tensor is cut."""
        return self._boxes[name]

    def read(self, name: str, box: Box) -> torch.Tensor:
        """A part of a tensor; no more than one stored box is in memory besides it, and none where it is one.

        Raises:
            UserError: a file is missing, cut off or garbled.
        """
        offset, shape = box
        overlaps = {stored: overlap for stored in self._boxes[name] if (overlap := _overlap(box, stored)) is not None}
        covered = sum(math.prod(size) for _start, size in overlaps.values())
        twice = any(_overlap(*pair) is not None for pair in itertools.combinations(overlaps.values(), 2))
        if covered != math.prod(shape) or twice:
            raise UserError(
                f"{self._state} holds {covered} of the {math.prod(shape)} numbers of {name} from {offset}, {shape}"
                + (", some of them twice" if twice else ""),
                "the boxes of a checkpoint's tensor cover it once",
                "the checkpoint is damaged or of another model: write it again",
            )
        if box in overlaps:
            return self._read_box(name, box)
        target = torch.empty(shape, dtype=self.dtypes[name])
        for stored, (start, size) in overlaps.items():
            content = self._read_box(name, stored)
            target[_slices(start, size, offset)].copy_(content[_slices(start, size, stored[0])])
        return target

    def _read_box(self, name: str, box: Box) -> torch.Tensor:
        stored = self._metadata.storage_data.get(MetadataIndex(name, torch.Size(box[0])))
        if stored is None:
            raise UserError(
                f"the metadata of {self._state} does not say where {name} at {box[0]} is",
                "a checkpoint's metadata knows the place of every box",
                "the checkpoint is damaged: write it again",
            )
        try:
            with (self._state / stored.relative_path).open("rb") as file:
                section = cast(BinaryIO, _Section(file, stored.offset, stored.length))
                content = torch.load(section, map_location="cpu", weights_only=True)
            if tuple(content.shape) != box[1] or content.dtype != self.dtypes[name]:
                raise ValueError(f"holds {tuple(content.shape)}, {content.dtype}")
        except Exception as error:  # torch raises whatever the bytes lead it to
            raise UserError(
                f"{self._state / stored.relative_path}, {name} at {box[0]}: {error}",
                "a checkpoint's files hold what its metadata says",
                "the file is cut off or garbled: write the checkpoint again",
            ) from error
        assert isinstance(content, torch.Tensor)
        return content


class _Section(io.RawIOBase):
    """A part of a file as a file, so that torch reads it without a copy in between."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._end = file, start, start + length
        file.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: self._start, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._end}[whence]
        return self._file.seek(origin + offset) - self._start

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        read: int = self._file.readinto(room[: max(0, self._end - self._file.tell())])  # type: ignore[attr-defined]
        return read


def write_tensors(state: Path, tensors: dict[str, TensorToWrite], *, threads: int) -> None:
    """Make a `state/` folder, whose parent must not yet be where it is looked for.

    torch's own writer would do, but that an exception in one of its threads is lost and leaves a checkpoint with holes.

    Args:
        threads: Boxes that are read and written at a time; each thread has a file of its own.
    """
    state.mkdir(parents=True)
    waiting = deque((name, box) for name, tensor in tensors.items() for box in tensor.boxes)
    files = [state / f"__0_{number}.distcp" for number in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        written = pool.map(lambda path: _write_file(path, tensors, waiting), files)
        stored = {index: place for places in written for index, place in places.items()}
    metadata = Metadata(
        state_dict_metadata={
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=tensor.dtype),
                size=torch.Size(tensor.shape),
                chunks=[ChunkStorageMetadata(*map(torch.Size, box)) for box in tensor.boxes],
            )
            for name, tensor in tensors.items()
        },
        storage_data=stored,
    )
    with (state / METADATA).open("wb") as file:
        pickle.dump(metadata, file)
    # What Megatron-Core keeps beside the tensors: state that is the same on every rank, of which there is none here.
    torch.save({}, state / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1, "torch", 1), str(state))


def _write_file(
    path: Path, tensors: dict[str, TensorToWrite], waiting: deque[tuple[str, Box]]
) -> dict[MetadataIndex, _StorageInfo]:
    """Write boxes until none is waiting; where in the file each is."""
    places = {}
    with path.open("wb") as file:
        stream = _HashingStream(file)
        try:
            while (turn := _take(waiting)) is not None:
                name, box = turn
                start = file.tell()
                stream.save(tensors[name].read(box))
                places[MetadataIndex(name, torch.Size(box[0]))] = _StorageInfo(path.name, start, file.tell() - start)
        except BaseException:
            waiting.clear()  # the others need not go on
            raise
        file.flush()
        os.fsync(file.fileno())
    remember_digest(path, stream.digest.hexdigest())
    return places


def _take(waiting: deque[tuple[str, Box]]) -> tuple[str, Box] | None:
    try:
        return waiting.popleft()
    except IndexError:  # another thread may have taken the last one
        return None


class _HashingStream(io.RawIOBase):
    """Hashes what goes through it, front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: OSError | None = None
        self.digest = hashlib.sha256()

    def save(self, tensor: torch.Tensor) -> None:
        """Write a tensor in torch's format.

        Raises:
            OSError: as the file raised it; torch would say only that writing failed.
        """
        try:
            torch.save(tensor, cast(BinaryIO, self))
        except RuntimeError:
            if self._failure is not None:
                raise self._failure from None
            raise

    def write(self, content: Any) -> int:
        self.digest.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self._failure = error
            raise


def _overlap(first: Box, second: Box) -> Box | None:
    starts = tuple(map(max, first[0], second[0]))
    ends = (
        min(offset + size, other_offset + other_size)
        for offset, size, other_offset, other_size in zip(*first, *second, strict=True)
    )
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return None if any(size <= 0 for size in sizes) else (starts, sizes)


def _slices(start: Sequence[int], size: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, a - o + n) for a, n, o in zip(start, size, origin, strict=True))
