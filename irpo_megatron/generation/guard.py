"""The watch over a stage's samples: useless ones teach nothing, and many of them mean a mistake."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from irpo_megatron.artifacts import Json, read_json, write_json
from irpo_megatron.claims.files import counts_path, shard_path
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.useless import KINDS, find_useless
from irpo_megatron.records import Sample, read_rows
from irpo_megatron.tasks import Task

logger = logging.getLogger(__name__)

# Shares among fewer samples than this say little: the workers go on to the next shard.
_ENOUGH_SAMPLES = 256
_EXAMPLES = 3
_SHOWN_CHARACTERS = 60
_REMEDIES = {
    "empty": "check that the model was trained to continue this task's prompt",
    "truncated": "raise generation.max_tokens, name a generation.stop, or check that the model knows its end token",
    "repeated": "check that the engine heeds the seed of a request and that the model is a trained one, or raise "
    "generation.temperature",
    "unparsable": "check that the model was trained to answer in this task's format, or give the prompt's examples",
}


class ShardGuard:
    """Counts the useless samples of each shard, and checks their shares among all shards that are there.

    The counts of a shard are kept beside it, so that each is counted once, whichever worker made it.
    """

    def __init__(self, partial: Path, settings: GenerationConfig, task: Task) -> None:
        self._partial = partial
        self._settings = settings
        self._task = task
        self._counts: dict[str, Json] = {}

    def watch(self, shard: str, samples: Sequence[Sample], *, among: Iterable[str]) -> None:
        """Count the samples of a shard that has been published, and check all those of the shards in `among`.

        Raises:
            UserError: a share is above its limit.
        """
        counts = self._count(shard, samples)
        shares = ", ".join(f"{counts[kind]['count'] / counts['samples']:.1%} {kind}" for kind in KINDS)
        logger.info("%s: %s", shard, shares)
        self.check([name for name in among if shard_path(self._partial, name).exists()], at_least=_ENOUGH_SAMPLES)

    def check(self, shards: Sequence[str], *, at_least: int = 1) -> Json:
        """Check the shares among these shards, if they hold `at_least` so many samples.

        Returns:
            The number of samples, and of each kind; the same for each shard.

        Raises:
            UserError: a share is above its limit.
        """
        found = {shard: self._counts_of(shard) for shard in shards}
        total = sum(counts["samples"] for counts in found.values())
        for kind in KINDS if total >= at_least else ():
            self._check_kind(kind, [counts[kind] for counts in found.values()], total)
        return {
            **_sums(found.values()),
            "shards": {shard: _sums([counts]) for shard, counts in found.items()},
        }

    def _check_kind(self, kind: str, found: Sequence[Json], total: int) -> None:
        key = f"max_{kind}_share"
        limit = getattr(self._settings, key)
        count = sum(counts["count"] for counts in found)
        if count > limit * total:
            examples = [example for counts in found for example in counts["examples"]]
            raise UserError(
                f"{count} of {total} samples ({count / total:.1%}) {self._what(kind)}, for example "
                + "; ".join(examples[:_EXAMPLES]),
                f"generation.{key} = {limit}",
                f"{_REMEDIES[kind]}; or raise generation.{key}",
            )

    def _what(self, kind: str) -> str:
        return {
            "empty": "are empty",
            "truncated": f"are cut off at {self._settings.max_tokens} tokens",
            "repeated": "end in a loop, or are all that their prompt was answered",
            "unparsable": "hold no final answer",
        }[kind]

    def _counts_of(self, shard: str) -> Json:
        """What is known of a published shard; one whose worker died before it could count is counted now."""
        if shard not in self._counts:
            path = counts_path(self._partial, shard)
            if path.is_file():
                self._counts[shard] = read_json(path)
            else:
                self._count(shard, read_rows(shard_path(self._partial, shard), Sample))
        return self._counts[shard]

    def _count(self, shard: str, samples: Sequence[Sample]) -> Json:
        useless = find_useless(samples, self._task)
        counts: Json = {
            "samples": len(samples),
            **{
                kind: {"count": len(found), "examples": [_shown(sample) for sample in found[:_EXAMPLES]]}
                for kind, found in useless.items()
            },
        }
        path = counts_path(self._partial, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, counts)
        self._counts[shard] = counts
        return counts


def _sums(found: Iterable[Json]) -> Json:
    found = list(found)
    return {
        "samples": sum(counts["samples"] for counts in found),
        **{kind: sum(counts[kind]["count"] for counts in found) for kind in KINDS},
    }


def _shown(sample: Sample) -> str:
    """A sample on one line: its name, the end of its prompt and the end of its completion."""
    prompt, completion = sample.prompt[-_SHOWN_CHARACTERS:], sample.completion[-_SHOWN_CHARACTERS:]
    return f"{sample.prompt_id}/{sample.sample_index}: ...{prompt!r} -> ...{completion!r}"
