"""A check that an engine heeds the seeds: some samplers ignore them, and then N samples are one sample N times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from irpo_megatron.errors import UserError
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings

# A model that is sure of itself may well say the same twice. That all samples of so many prompts are equal is no
# chance.
_ENOUGH_PROMPTS = 8

Sample = Callable[[Iterable[SampleRequest], SamplingSettings], Iterator[tuple[int, Completion]]]


@dataclass(slots=True)
class _Said:
    """What a prompt was answered."""

    seed: int
    ids: tuple[int, ...]
    several_seeds: bool = False
    differ: bool = False


def refuse_ignored_seeds(
    sample: Sample, requests: Iterable[SampleRequest], settings: SamplingSettings, *, engine: str
) -> Iterator[tuple[int, Completion]]:
    """What `sample` yields; at the end, check that the samples of a prompt differ.

    An engine that draws from a generator of its own, whatever the seeds, is not found out: its samples differ.

    Raises:
        UserError: there are enough prompts with samples of several seeds, and in each of them all samples are equal.
    """
    under_way: dict[int, SampleRequest] = {}

    def noted() -> Iterator[SampleRequest]:
        for position, request in enumerate(requests):
            under_way[position] = request
            yield request

    prompts: dict[tuple[int, ...], _Said] = {}
    for position, completion in sample(noted(), settings):
        request = under_way.pop(position)
        said = prompts.setdefault(request.prompt_ids, _Said(request.seed, completion.ids))
        said.several_seeds |= request.seed != said.seed
        said.differ |= completion.ids != said.ids
        yield position, completion
    several = [said for said in prompts.values() if said.several_seeds]
    if settings.temperature > 0 and len(several) >= _ENOUGH_PROMPTS and not any(said.differ for said in several):
        raise UserError(
            f"{engine} said the same in all samples of each of {len(several)} prompts, at temperature "
            f"{settings.temperature}",
            "samples of one prompt differ: each has a seed of its own, and the engine draws by it",
            "use an engine, or a sampler of it, that heeds the seed of a request; or raise generation.temperature",
        )
