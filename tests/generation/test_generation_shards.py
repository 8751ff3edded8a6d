"""Shards: what they hold does not depend on how they were cut or how often their making was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.generation import SeedReader, make_request

from irpo_megatron.artifacts import read_json
from irpo_megatron.errors import UserError
from irpo_megatron.generation import Completion, Prompt, worker
from irpo_megatron.generation.shards import Shard
from irpo_megatron.records import Problem, Sample, read_rows
from irpo_megatron.requests import WorkerRequest
from irpo_megatron.seeds import derive_seed

PROBLEMS = 12
SAMPLES = 4


@pytest.fixture
def sample(
    tmp_path: Path, problems: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SeedReader]:
    """Have one worker sample into a folder of that name; the engine that it had."""

    def run(name: str, *, generator: SeedReader | None = None, **changes: Any) -> SeedReader:
        generator = generator or SeedReader()
        monkeypatch.setattr(worker, "load_generator", lambda settings, folder: generator)
        request = make_request(tmp_path / name, problems, digits_folder, **changes)
        worker.run(WorkerRequest.of(request))
        return generator

    return run


def shard_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


def test_rows_stand_in_the_order_of_prompts_and_indices(
    tmp_path: Path, problems: Path, sample: Callable[..., SeedReader]
) -> None:
    sample("made")
    shards = [read_rows(path, Sample) for path in sorted((tmp_path / "made").glob("*.parquet"))]
    assert [len(shard) for shard in shards] == [20, 20, 8]
    rows = [row for shard in shards for row in shard]
    identities = [problem.id for problem in read_rows(problems / "train.parquet", Problem)]
    expected = [(identity, index) for identity in identities for index in range(SAMPLES)]
    for row, (identity, index) in zip(rows, expected, strict=True):
        seed = derive_seed(3, "sample", 2, identity, index)
        assert (row.prompt_id, row.sample_index, row.seed) == (identity, index, seed)
        assert row.completion == f"{len(row.prompt_ids)} {seed}"


@pytest.mark.parametrize("shard_prompts", [1, 3, 100])
def test_the_shard_size_changes_nothing(tmp_path: Path, sample: Callable[..., SeedReader], shard_prompts: int) -> None:
    sample("five")
    sample("other", shard_prompts=shard_prompts)
    assert read_rows(tmp_path / "other", Sample) == read_rows(tmp_path / "five", Sample)


@pytest.mark.parametrize("dies_after", [0, 5, 20, 41])
def test_a_killed_directory_goes_on_where_it_was(
    tmp_path: Path, sample: Callable[..., SeedReader], dies_after: int
) -> None:
    sample("whole")
    with pytest.raises(KeyboardInterrupt):
        sample("killed", generator=SeedReader(dies_after=dies_after))
    assert len(shard_bytes(tmp_path / "killed")) == dies_after // 20
    # Another number of prompts a shard is heard only at the first start.
    generator = sample("killed", shard_prompts=7)
    assert len(generator.pulled) == 48 - dies_after // 20 * 20
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")
    assert read_json(tmp_path / "killed" / "generations-shards.json") == {"shard_prompts": 5}


def test_a_lost_shard_is_made_again(tmp_path: Path, sample: Callable[..., SeedReader]) -> None:
    sample("made")
    before = shard_bytes(tmp_path / "made")
    (tmp_path / "made" / "generations-00001.parquet").unlink()
    assert len(sample("made").pulled) == 20
    assert shard_bytes(tmp_path / "made") == before


def test_where_all_is_there_no_engine_is_loaded(
    tmp_path: Path, sample: Callable[..., SeedReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample("made").closed == 1
    assert sample("made").closed == 0


@pytest.mark.parametrize("changes", [{"seed": 6}, {"samples": 2}, {"iteration": 1}])
def test_shards_of_something_else_are_refused(sample: Callable[..., SeedReader], changes: dict[str, Any]) -> None:
    sample("made")
    with pytest.raises(UserError, match=r"made/generations-0000\d\.parquet holds other samples"):
        sample("made", **changes)


def test_shards_that_lost_their_size_are_refused(tmp_path: Path, sample: Callable[..., SeedReader]) -> None:
    sample("made")
    (tmp_path / "made" / "generations-shards.json").unlink()
    with pytest.raises(UserError, match="holds other samples"):
        sample("made", shard_prompts=1)


def test_a_damaged_shard_is_named(tmp_path: Path, sample: Callable[..., SeedReader]) -> None:
    sample("made")
    (tmp_path / "made" / "generations-00001.parquet").write_text("no rows")
    with pytest.raises(UserError, match=r"generations-00001\.parquet.*\n.*readable Parquet file"):
        sample("made")


def test_a_prompt_without_room_is_refused_before_anything_is_sampled(sample: Callable[..., SeedReader]) -> None:
    generator = SeedReader(context=20)
    with pytest.raises(UserError, match=r"longest prompt has 1\d tokens"):
        sample("made", generator=generator)
    assert not generator.pulled


def test_a_model_without_a_limit_takes_any_prompt(sample: Callable[..., SeedReader]) -> None:
    assert len(sample("made", generator=SeedReader(context=None), max_tokens=10**9).pulled) == 48


def test_batches_go_across_shards(sample: Callable[..., SeedReader]) -> None:
    assert sample("made", generator=SeedReader(room=9), shard_prompts=1).batches == [9, 9, 9, 9, 9, 3]


def shard(path: Path, *lengths: int, gold: int = 0, samples: int = 3, greedy: bool = False) -> Shard:
    prompts = [Prompt(id=f"train-{n}", text="?", ids=(7,) * n, gold_tokens=gold) for n in lengths]
    return Shard(path=path, prompts=prompts, samples=samples, greedy=greedy, run_seed=5, seed_names=("sample", 2))


def test_greedy_samples_have_the_seed_zero(tmp_path: Path) -> None:
    assert [seed for _, _, seed in shard(tmp_path, 1, 2, greedy=True).asked] == [0] * 6


def test_the_work_in_a_shard_is_guessed_from_gold_solutions(tmp_path: Path) -> None:
    assert shard(tmp_path, 3, 4).expected_tokens == 7
    assert shard(tmp_path, 3, 4, gold=10).expected_tokens == 7 + 2 * 3 * 10


def test_what_is_published_first_stays(tmp_path: Path) -> None:
    made = shard(tmp_path / "a.parquet", 1, samples=2)

    def rows(text: str) -> list[Sample]:
        return made.rows({k: Completion(ids=(1,), text=text, finish_reason="stop") for k in range(2)})

    assert made.publish(rows("first"))
    assert not made.publish(rows("second"))
    assert [row.completion for row in read_rows(made.path, Sample)] == ["first", "first"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
