"""Live ranks -> Hugging Face weights: each rank writes files, and is sent what it lacks, a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from irpo_megatron.artifacts import remember_digest
from irpo_megatron.conversion.finite import is_finite
from irpo_megatron.conversion.out_of_megatron import tensors_of
from irpo_megatron.conversion.sharded_files import WeightFile, plan_files, write_file, write_index
from irpo_megatron.conversion.table import Entry, table
from irpo_megatron.conversion.weights import tensor_shapes
from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Policy
from irpo_megatron.engine.shards import Shard, model_shards
from irpo_megatron.errors import UserError

_Name = tuple[str, int | None]


@dataclass(frozen=True)
class _Held:
    """A part of a tensor, and the rank that speaks for it."""

    rank: int
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def write_live_weights(
    folder: Path, model: Sequence[Policy], architecture: Architecture, place: Place, *, dtype: torch.dtype
) -> None:
    """Write the weights of a model as it stands, at whatever layout, and their index; nothing else. Collective.

    Memory: a rank holds one tensor of one layer besides its model. Files are dealt out to the ranks, so that all write.

    Args:
        folder: Not yet where it is looked for.

    Raises:
        RuntimeError: on every rank, where one of them could not write, or holds numbers that are not finite.
    """
    entries = tuple(table(architecture))
    files = plan_files(tensor_shapes(entries), dtype)
    exchange = _Exchange(model, entries, files, place)
    failure: Exception | None = None
    try:
        for file in exchange.my_files:
            remember_digest(folder / file.name, write_file(folder, file, tensors_of(file, entries, exchange.receive)))
    except (OSError, UserError, ValueError) as error:  # the others wait for what this rank holds
        failure = error
    exchange.serve_the_others()
    if place.any(failure is not None):
        raise RuntimeError(f"{folder} was not written: {failure or 'another rank failed'}") from failure
    if dist.get_rank() == 0:
        write_index(folder, files)
    dist.barrier()


class _Exchange:
    """Rounds in which every rank that still writes is sent one tensor, and every rank sends what it holds of them."""

    def __init__(
        self, model: Sequence[Policy], entries: Sequence[Entry], files: Sequence[WeightFile], place: Place
    ) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._device = place.device
        self._mine: dict[tuple[_Name, tuple[int, ...]], Shard] = {
            ((shard.key, shard.layer), shard.offset): shard for shard in model_shards(model) if shard.main
        }
        self._holders = self._ask_everyone()
        self.my_files = files[self._rank :: self._world]
        makes = {file.name: [entry for entry in entries if file.shapes.keys() & set(entry.tensors)] for file in files}
        wanted = [
            [entry for file in files[rank :: self._world] for entry in makes[file.name]] for rank in range(self._world)
        ]
        rounds = max(map(len, wanted))
        self._rounds: Iterator[list[Entry | None]] = iter(
            [[one[number] if number < len(one) else None for one in wanted] for number in range(rounds)]
        )

    def receive(self, entry: Entry) -> torch.Tensor:
        """This rank's tensor of the next round, which is `entry`."""
        received = self._round(next(self._rounds))
        assert received is not None
        if not is_finite(received):
            raise ValueError(f"{entry.key} of layer {entry.layer} holds NaN or infinity")
        return received

    def serve_the_others(self) -> None:
        """Take part in the rounds that are left."""
        for wanted in self._rounds:
            self._round(wanted)

    def _round(self, wanted: Sequence[Entry | None]) -> torch.Tensor | None:
        messages: list[dist.P2POp] = []
        whole: torch.Tensor | None = None
        parts: list[tuple[_Held, torch.Tensor]] = []
        for receiver, entry in enumerate(wanted):
            if entry is None:
                continue
            name = (entry.key, entry.layer)
            for held in self._holders[name]:
                if held.rank == self._rank:
                    content = self._mine[name, held.offset].data.contiguous()
                    if receiver == self._rank:
                        parts.append((held, content))
                    else:
                        messages.append(dist.P2POp(dist.isend, content, receiver))
                elif receiver == self._rank:
                    content = torch.empty(held.shape, dtype=held.dtype, device=self._device)
                    parts.append((held, content))
                    messages.append(dist.P2POp(dist.irecv, content, held.rank))
        for request in dist.batch_isend_irecv(messages) if messages else ():
            request.wait()
        mine = wanted[self._rank]
        if mine is not None:
            whole = torch.empty(mine.shape, dtype=parts[0][0].dtype)
            for held, content in parts:
                _place(whole, held, content)
        return whole

    def _ask_everyone(self) -> dict[_Name, list[_Held]]:
        mine = [
            (name, _Held(self._rank, offset, tuple(shard.data.shape), shard.data.dtype))
            for (name, offset), shard in self._mine.items()
        ]
        everyone: list[list[tuple[_Name, _Held]]] = [[] for _ in range(self._world)]
        dist.all_gather_object(everyone, mine)
        holders: dict[_Name, list[_Held]] = {}
        for name, held in (one for rank in everyone for one in rank):
            holders.setdefault(name, []).append(held)
        return holders


def _place(whole: torch.Tensor, held: _Held, content: torch.Tensor) -> None:
    """Put a part where it belongs; rows of a padded vocabulary belong nowhere."""
    room = [min(size, total - start) for start, size, total in zip(held.offset, held.shape, whole.shape, strict=True)]
    if all(size > 0 for size in room):
        into = tuple(slice(start, start + size) for start, size in zip(held.offset, room, strict=True))
        whole[into].copy_(content[tuple(slice(size) for size in room)])
