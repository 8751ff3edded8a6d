"""Between shards and an engine: it pulls requests, shard after shard, and shards come out when they are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from irpo_megatron.generation.protocol import Completion, Generator, SampleRequest, SamplingSettings
from irpo_megatron.generation.shards import Shard
from irpo_megatron.records import Sample


@dataclass
class _UnderWay:
    """A shard of which the engine has taken requests."""

    name: str
    shard: Shard
    completions: dict[int, Completion] = field(default_factory=dict)


def pull_shards(
    shards: Iterator[tuple[str, Shard]],
    generator: Generator,
    settings: SamplingSettings,
    *,
    add: Callable[[str, Completion], None],
) -> Iterator[tuple[str, Shard, list[Sample]]]:
    """Yield (name, shard, its rows) of each shard once its last sample is in.

    Args:
        shards: Asked for the next one only when the engine has room for another request.
        add: Is told of each completion as it comes in, and of its shard's name.

    Raises:
        UserError: the model or the engine is broken.
    """
    asked: dict[int, tuple[_UnderWay, int]] = {}

    def requests() -> Iterator[SampleRequest]:
        position = 0
        for name, shard in shards:
            under_way = _UnderWay(name, shard)
            for index, request in enumerate(shard.requests()):
                asked[position] = under_way, index
                position += 1
                yield request

    for position, completion in generator.generate(requests(), settings):
        under_way, index = asked.pop(position)
        under_way.completions[index] = completion
        add(under_way.name, completion)
        if len(under_way.completions) == len(under_way.shard.asked):
            yield under_way.name, under_way.shard, under_way.shard.rows(under_way.completions)
