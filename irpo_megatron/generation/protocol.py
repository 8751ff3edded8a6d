"""What a sampling engine takes and gives, whichever engine it is.

One request is one sample with a seed of its own. An engine pulls requests as it has room for them and hands completions
back as they finish, so it is busy for as long as there is anything to do. The samples of a prompt follow one another:
its prefill can be computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from irpo_megatron.records import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One sample of one prompt."""

    prompt_ids: tuple[int, ...]
    seed: int
    """63 bits; greedy decoding does not look at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How every sample of a call is drawn."""

    temperature: float
    """Softmax temperature; 0 is greedy decoding."""
    top_p: float
    """Nucleus: the smallest set of most probable tokens with at least this probability; 1 keeps all."""
    max_tokens: int
    """Longest completion in tokens, end token included."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they stay part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one request came to.

    `ids` ends with the end token or with the token that completes a stop string where `finish_reason` is `stop`.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


class Generator(Protocol):
    """An engine with a model loaded."""

    @property
    def context(self) -> int | None:
        """Longest sequence, prompt and completion together, in tokens; None where the model sets no limit."""
        ...

    def generate(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (position in `requests`, completion) for every request, in whatever order they finish.

        Requests are pulled one by one as there is room: to ask for one is to claim work that other workers then leave
        alone. Never more of them are under way than the engine needs to be busy.

        A completion is a function of the model, the settings and its own request: never of the other requests. An
        engine that cannot promise this says so.

        Raises:
            UserError: a prompt leaves less room than `max_tokens` in the model's context, or the model or the engine is
                broken.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds, also after an error; nothing is generated after that."""
        ...
