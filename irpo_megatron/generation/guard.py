"""The watch over a stage's samples: empty or cut-off completions teach nothing, and many of them mean a mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.records import Sample

_EXAMPLES = 3
_SHOWN_CHARACTERS = 60


class SampleGuard:
    """Counts the samples that have no text and those that were cut off at `max_tokens`."""

    def __init__(self, settings: GenerationConfig) -> None:
        self._total = 0
        self._kinds = (
            _Kind(
                "are empty",
                lambda sample: not sample.completion.strip(),
                "generation.max_empty_share",
                settings.max_empty_share,
                "check that the model was trained to continue this task's prompt",
            ),
            _Kind(
                f"are cut off at {settings.max_tokens} tokens",
                lambda sample: sample.finish_reason == "length",
                "generation.max_truncated_share",
                settings.max_truncated_share,
                "raise generation.max_tokens, name a generation.stop, or check that the model knows its end token",
            ),
        )

    def add(self, samples: Sequence[Sample]) -> None:
        """Count the samples of a shard."""
        self._total += len(samples)
        for kind in self._kinds:
            kind.add(samples)

    def check(self, *, at_least: int = 1) -> None:
        """Check the shares among all samples so far, if there are `at_least` so many of them.

        Raises:
            UserError: a share is above its limit.
        """
        if self._total >= at_least:
            for kind in self._kinds:
                kind.check(self._total)


class _Kind:
    """One way in which a sample can be of no use."""

    def __init__(self, what: str, holds: Callable[[Sample], bool], key: str, limit: float, remedy: str) -> None:
        self._what = what
        self._holds = holds
        self._key = key
        self._limit = limit
        self._remedy = remedy
        self._count = 0
        self._examples: list[Sample] = []

    def add(self, samples: Sequence[Sample]) -> None:
        useless = [sample for sample in samples if self._holds(sample)]
        self._count += len(useless)
        self._examples += useless[: _EXAMPLES - len(self._examples)]

    def check(self, total: int) -> None:
        share = self._count / total
        if share > self._limit:
            raise UserError(
                f"{self._count} of {total} samples ({share:.1%}) {self._what}, for example "
                + "; ".join(_shown(sample) for sample in self._examples),
                f"{self._key} = {self._limit}",
                f"{self._remedy}; or raise {self._key}",
            )


def _shown(sample: Sample) -> str:
    """A sample on one line: its name, the end of its prompt and the end of its completion."""
    prompt, completion = sample.prompt[-_SHOWN_CHARACTERS:], sample.completion[-_SHOWN_CHARACTERS:]
    return f"{sample.prompt_id}/{sample.sample_index}: ...{prompt!r} -> ...{completion!r}"
