"""Which samples are decoded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from irpo_megatron.generation.protocol import SampleRequest


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one prompt that share its prefill."""

    prompt_ids: tuple[int, ...]
    members: tuple[int, ...]
    """Positions in the sequence of requests."""


def cut_batches(requests: Sequence[SampleRequest], batch_size: int) -> Iterator[list[Group]]:
    """Cut the requests into batches of at most `batch_size` samples, prompts of similar length together.

    Requests with the same prompt form one group. Only a group larger than a whole batch is split, since each part is
    prefilled anew.
    """
    members_of: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        members_of.setdefault(request.prompt_ids, []).append(index)
    batch: list[Group] = []
    free = batch_size
    for prompt_ids in sorted(members_of, key=len):
        members = members_of[prompt_ids]
        for start in range(0, len(members), batch_size):
            part = tuple(members[start : start + batch_size])
            if len(part) > free:
                yield batch
                batch, free = [], batch_size
            batch.append(Group(prompt_ids, part))
            free -= len(part)
    if batch:
        yield batch
