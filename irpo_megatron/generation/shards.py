"""The shards of a job: which prompts stand in which file, and the rows that a file holds."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from irpo_megatron.artifacts import create_json, publish, read_json
from irpo_megatron.errors import UserError
from irpo_megatron.generation.prompts import Prompt
from irpo_megatron.generation.protocol import Completion, SampleRequest
from irpo_megatron.records import Sample, read_rows, write_rows
from irpo_megatron.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Prompts whose samples stand in one Parquet file, in the order of the prompts and then of the sample index."""

    path: Path
    prompts: Sequence[Prompt]
    samples: int
    """Completions a prompt."""
    greedy: bool
    run_seed: int
    seed_names: tuple[str | int, ...]
    """Sample i of a prompt has the seed `derive_seed(run_seed, *seed_names, prompt.id, i)`, and 0 where greedy."""

    @property
    def expected_tokens(self) -> int:
        """A guess at the work: completions are taken to be as long as the gold solutions."""
        return sum(len(prompt.ids) + self.samples * prompt.gold_tokens for prompt in self.prompts)

    @cached_property
    def asked(self) -> list[tuple[Prompt, int, int]]:
        """(prompt, sample index, seed) of each row."""
        return [
            (prompt, index, 0 if self.greedy else derive_seed(self.run_seed, *self.seed_names, prompt.id, index))
            for prompt in self.prompts
            for index in range(self.samples)
        ]

    def requests(self) -> list[SampleRequest]:
        """A request for each row."""
        return [SampleRequest(prompt_ids=prompt.ids, seed=seed) for prompt, _, seed in self.asked]

    def rows(self, completions: Mapping[int, Completion]) -> list[Sample]:
        """The rows, from the completion of each by its position."""
        return [
            Sample(
                prompt_id=prompt.id,
                sample_index=index,
                seed=seed,
                prompt=prompt.text,
                prompt_ids=prompt.ids,
                completion=completions[position].text,
                completion_ids=completions[position].ids,
                finish_reason=completions[position].finish_reason,
            )
            for position, (prompt, index, seed) in enumerate(self.asked)
        ]

    def publish(self, rows: Sequence[Sample]) -> bool:
        """Write the file, which appears whole; one that another worker has published meanwhile stays.

        Returns:
            Whether it is these rows that stand there.
        """
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        write_rows(temporary, rows, Sample)
        return publish(temporary, self.path)

    def check(self) -> None:
        """Check a file of an earlier start.

        Raises:
            UserError: its rows are not those asked for.
        """
        try:
            columns = pq.read_table(self.path, columns=["prompt_id", "sample_index", "seed"]).to_pydict()
            found = list(zip(*columns.values(), strict=True))
        except (OSError, ValueError):  # a damaged file, or one of another version: say which
            found = [(row.prompt_id, row.sample_index, row.seed) for row in read_rows(self.path, Sample)]
        if found != [(prompt.id, index, seed) for prompt, index, seed in self.asked]:
            raise UserError(
                f"{self.path} holds other samples than this stage would write there",
                "a stage goes on from its own shards only",
                f"delete {self.path.parent} so that it is computed again",
            )


def shard_size(record: Path, wanted: int) -> int:
    """Prompts a shard, as the directory began with: what `record` says; `wanted`, from now on, where it says nothing.

    Of several workers that begin together, one decides.
    """
    if not record.exists():
        create_json(record, {"shard_prompts": wanted})
    return int(read_json(record)["shard_prompts"])


def read_shards(directory: Path, prefix: str) -> list[Sample]:
    """The rows of every shard of a prefix, in their order."""
    return [row for path in sorted(directory.glob(f"{prefix}-*.parquet")) for row in read_rows(path, Sample)]
