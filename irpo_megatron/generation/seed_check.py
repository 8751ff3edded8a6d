"""A check that an engine heeds the seeds: some samplers ignore them, and then N samples are one sample N times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from irpo_megatron.errors import UserError
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings

# A model that is sure of itself may well say the same twice. That all samples of so many prompts are equal is no
# chance.
_ENOUGH_PROMPTS = 8


def refuse_ignored_seeds(
    completed: Iterable[tuple[int, Completion]],
    requests: Sequence[SampleRequest],
    settings: SamplingSettings,
    *,
    engine: str,
) -> Iterator[tuple[int, Completion]]:
    """Pass completions on; at the end, check that the samples of a prompt differ.

    An engine that draws from a generator of its own, whatever the seeds, is not found out: its samples differ.

    Raises:
        UserError: there are enough prompts with samples of several seeds, and in each of them all samples are equal.
    """
    said: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for position, completion in completed:
        said.setdefault(requests[position].prompt_ids, set()).add(completion.ids)
        yield position, completion
    if settings.temperature == 0:
        return
    seeds: dict[tuple[int, ...], set[int]] = {}
    for request in requests:
        seeds.setdefault(request.prompt_ids, set()).add(request.seed)
    several = [prompt for prompt, different in seeds.items() if len(different) > 1]
    if len(several) >= _ENOUGH_PROMPTS and all(len(said[prompt]) == 1 for prompt in several):
        raise UserError(
            f"{engine} said the same in all samples of each of {len(several)} prompts, at temperature "
            f"{settings.temperature}",
            "samples of one prompt differ: each has a seed of its own, and the engine draws by it",
            "use an engine, or a sampler of it, that heeds the seed of a request; or raise generation.temperature",
        )
