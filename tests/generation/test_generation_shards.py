"""Shards: what they hold does not depend on how they were cut or how often their making was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.artifacts import ProgressWriter, read_json, read_progress
from irpo_megatron.errors import UserError
from irpo_megatron.generation import Completion, Prompt, SampleRequest, SamplingSettings, sample_shards
from irpo_megatron.records import Sample, read_rows
from irpo_megatron.seeds import derive_seed

PROMPTS = [Prompt(id=f"train-{number}", text="?" * number, ids=(7,) * number) for number in (3, 1, 4, 1 + 4, 9)]
SAMPLED = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=10)
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=10)


class SeedReader:
    """A generator whose completion spells its request, yielded in reverse order."""

    context = 100

    def __init__(self, *, dies_at: int | None = None) -> None:
        self.calls = 0
        self._dies_at = dies_at

    def generate(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        self.calls += 1
        if self.calls == self._dies_at:
            raise KeyboardInterrupt
        for position in reversed(range(len(requests))):
            request = requests[position]
            text = f"{len(request.prompt_ids)} {request.seed}"
            yield position, Completion(ids=request.prompt_ids, text=text, finish_reason="stop")


def sample_into(directory: Path, **changes: Any) -> list[list[Sample]]:
    """The shards of `PROMPTS`, two prompts a shard, three samples a prompt."""
    directory.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "generator": SeedReader(),
        "settings": SAMPLED,
        "samples": 3,
        "run_seed": 5,
        "seed_names": ("sample", 2),
        "shard_prompts": 2,
        "progress": ProgressWriter(directory, total=15, unit="samples"),
        "prefix": "made",
        "prompts": PROMPTS,
    } | changes
    prefix, prompts = values.pop("prefix"), values.pop("prompts")
    return list(sample_shards(directory, prefix, prompts, **values))


def shard_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


def test_rows_stand_in_the_order_of_prompts_and_indices(tmp_path: Path) -> None:
    shards = sample_into(tmp_path)
    assert [len(shard) for shard in shards] == [6, 6, 3]
    assert [path.name for path in sorted(tmp_path.glob("*.parquet"))] == [f"made-0000{n}.parquet" for n in range(3)]
    rows = [row for shard in shards for row in shard]
    assert rows == read_rows(tmp_path, Sample)
    expected = [(prompt, index) for prompt in PROMPTS for index in range(3)]
    for row, (prompt, index) in zip(rows, expected, strict=True):
        seed = derive_seed(5, "sample", 2, prompt.id, index)
        assert (row.prompt_id, row.sample_index, row.seed) == (prompt.id, index, seed)
        assert (row.prompt, row.prompt_ids) == (prompt.text, prompt.ids)
        assert row.completion == f"{len(prompt.ids)} {seed}"
    progress = read_progress(tmp_path)
    assert progress is not None
    assert (progress.done, progress.total) == (15, 15)


def test_greedy_samples_have_the_seed_zero(tmp_path: Path) -> None:
    rows = [row for shard in sample_into(tmp_path, settings=GREEDY, samples=1) for row in shard]
    assert [row.seed for row in rows] == [0] * 5


@pytest.mark.parametrize("shard_prompts", [1, 3, 100])
def test_the_shard_size_changes_nothing(tmp_path: Path, shard_prompts: int) -> None:
    sample_into(tmp_path / "two")
    sample_into(tmp_path / "other", shard_prompts=shard_prompts)
    assert read_rows(tmp_path / "other", Sample) == read_rows(tmp_path / "two", Sample)


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_killed_directory_goes_on_where_it_was(tmp_path: Path, dies_at: int) -> None:
    sample_into(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        sample_into(tmp_path / "killed", generator=SeedReader(dies_at=dies_at))
    assert len(shard_bytes(tmp_path / "killed")) == dies_at - 1
    generator = SeedReader()
    # Another number of prompts a shard is heard only at the first start.
    shards = sample_into(tmp_path / "killed", generator=generator, shard_prompts=5)
    assert generator.calls == 3 - (dies_at - 1)
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")
    assert shards == sample_into(tmp_path / "whole")
    assert read_json(tmp_path / "killed" / "made-shards.json") == {"shard_prompts": 2}


def test_a_lost_shard_is_made_again(tmp_path: Path) -> None:
    sample_into(tmp_path)
    before = shard_bytes(tmp_path)
    (tmp_path / "made-00001.parquet").unlink()
    generator = SeedReader()
    sample_into(tmp_path, generator=generator)
    assert generator.calls == 1
    assert shard_bytes(tmp_path) == before


def test_two_prefixes_share_a_directory(tmp_path: Path) -> None:
    sample_into(tmp_path)
    sample_into(tmp_path, prefix="greedy", settings=GREEDY, samples=1, shard_prompts=5)
    assert [path.name for path in sorted(tmp_path.glob("greedy*"))] == ["greedy-00000.parquet", "greedy-shards.json"]


@pytest.mark.parametrize("changes", [{"run_seed": 6}, {"samples": 2}, {"prompts": PROMPTS[::-1]}])
def test_shards_of_something_else_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    sample_into(tmp_path)
    with pytest.raises(UserError, match=r"made-00000\.parquet holds other samples"):
        sample_into(tmp_path, **changes)


def test_shards_that_lost_their_size_are_refused(tmp_path: Path) -> None:
    sample_into(tmp_path)
    (tmp_path / "made-shards.json").unlink()
    with pytest.raises(UserError, match="holds other samples"):
        sample_into(tmp_path, shard_prompts=1)


def test_a_prompt_without_room_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    generator = SeedReader()
    long = Prompt(id="long", text="", ids=(7,) * 91)
    with pytest.raises(UserError, match="longest prompt has 91 tokens"):
        sample_into(tmp_path, generator=generator, prompts=[*PROMPTS, long])
    assert generator.calls == 0


def test_a_model_without_a_limit_takes_any_prompt(tmp_path: Path) -> None:
    generator = SeedReader()
    generator.context = None
    assert len(sample_into(tmp_path, generator=generator, prompts=[Prompt(id="long", text="", ids=(7,) * 9999)])) == 1


def test_no_prompts_make_no_shards(tmp_path: Path) -> None:
    assert sample_into(tmp_path, prompts=[]) == []
