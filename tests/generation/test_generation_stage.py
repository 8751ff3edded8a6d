"""The stage: which problems, which settings, and the whole of it in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.generation import make_request
from support.stages import run_request

from irpo_megatron.artifacts import read_progress
from irpo_megatron.config import DataConfig, SelectionConfig
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.stage import problems_to_sample, run, temperature_at
from irpo_megatron.records import Problem, Sample, read_rows
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task

MODULE = "irpo_megatron.generation.stage"


def test_the_stage_samples_every_training_problem(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    run(make_request(tmp_path, problems, digits_folder))
    assert [path.name for path in sorted(tmp_path.glob("*.parquet"))] == [
        f"generations-0000{n}.parquet" for n in range(3)
    ]
    rows = read_rows(tmp_path, Sample)
    train = read_rows(problems / "train.parquet", Problem)
    assert [(row.prompt_id, row.sample_index) for row in rows] == [(p.id, k) for p in train for k in range(4)]
    assert [row.prompt for row in rows[::4]] == [load_task("arithmetic").prompt(problem) for problem in train]
    assert rows[5].seed == derive_seed(3, "sample", 2, "train-000001", 1)
    assert len({row.completion_ids for row in rows}) > 24
    progress = read_progress(tmp_path)
    assert progress is not None
    assert (progress.done, progress.total, progress.unit) == (48, 48, "samples")


def test_neither_batches_nor_shards_nor_a_restart_change_the_rows(
    tmp_path: Path, problems: Path, digits_folder: Path
) -> None:
    run(make_request(tmp_path / "a", problems, digits_folder))
    run(make_request(tmp_path / "b", problems, digits_folder, shard_prompts=2, batch_size=3))
    (tmp_path / "b" / "generations-00001.parquet").unlink()
    (tmp_path / "b" / "generations-00004.parquet").unlink()
    run(make_request(tmp_path / "b", problems, digits_folder, shard_prompts=7))
    assert read_rows(tmp_path / "a", Sample) == read_rows(tmp_path / "b", Sample)


def test_each_iteration_samples_anew(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    for iteration in (1, 2):
        run(make_request(tmp_path / str(iteration), problems, digits_folder, iteration=iteration))
    first, second = (read_rows(tmp_path / str(iteration), Sample) for iteration in (1, 2))
    assert [row.prompt for row in first] == [row.prompt for row in second]
    assert [row.completion for row in first] != [row.completion for row in second]


def test_an_iteration_may_sample_a_subset_of_its_own(tmp_path: Path, problems: Path) -> None:
    data = DataConfig(train="x", test="x", problems_per_iteration=5)
    drawn = [
        [problem.id for problem in problems_to_sample(make_request(tmp_path, problems, tmp_path, data=data, **changes))]
        for changes in ({"iteration": 1}, {"iteration": 1}, {"iteration": 2}, {"iteration": 1, "seed": 4})
    ]
    assert all(len(set(ids)) == 5 and ids == sorted(ids) for ids in drawn)
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) == 3


def test_a_subset_as_large_as_the_data_is_all_of_it(tmp_path: Path, problems: Path) -> None:
    for wanted in (12, 13):
        data = DataConfig(train="x", test="x", problems_per_iteration=wanted)
        assert len(problems_to_sample(make_request(tmp_path, problems, tmp_path, data=data))) == 12


def test_held_out_problems_are_sampled_where_retraining_uses_them(tmp_path: Path, problems: Path) -> None:
    request = make_request(
        tmp_path,
        problems,
        tmp_path,
        selection=SelectionConfig(held_out=3, retrain=True),
        data=DataConfig(train="x", test="x", problems_per_iteration=2),
    )
    ids = [problem.id for problem in problems_to_sample(request)]
    assert [identity.split("-")[0] for identity in ids] == ["train"] * 2 + ["held_out"] * 3


def test_the_temperature_is_that_of_the_iteration() -> None:
    listed = GenerationConfig(temperature=(0.8, 0.8, 1.3))
    assert [temperature_at(listed, iteration) for iteration in (1, 2, 3)] == [0.8, 0.8, 1.3]
    assert temperature_at(GenerationConfig(temperature=0.7), 9) == 0.7


def test_too_many_truncated_samples_stop_the_stage_early(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    changes = {"max_truncated_share": 0.1, "max_tokens": 2}
    with pytest.raises(UserError, match="cut off at 2 tokens"):
        run(make_request(tmp_path / "many", problems, digits_folder, samples=64, shard_prompts=2, **changes))
    assert len(list((tmp_path / "many").glob("*.parquet"))) == 2
    with pytest.raises(UserError, match="of 48 samples"):
        run(make_request(tmp_path / "few", problems, digits_folder, **changes))


def test_the_process_leaves_shards_or_the_error(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    run(make_request(tmp_path / "here", problems, digits_folder))
    run_request(MODULE, make_request(tmp_path / "there", problems, digits_folder))
    assert read_rows(tmp_path / "there", Sample) == read_rows(tmp_path / "here", Sample)
    with pytest.raises(UserError, match="longest prompt"):
        run_request(MODULE, make_request(tmp_path / "long", problems, digits_folder, max_tokens=127))


def test_importing_the_room_brings_no_engine_along() -> None:
    modules = [path.stem for path in (Path(__file__).parents[2] / "irpo_megatron" / "generation").glob("*.py")]
    imports = "; ".join(f"import irpo_megatron.generation.{name}" for name in modules if name != "__init__")
    check = f"import sys; {imports}; assert not {{'torch', 'transformers', 'tokenizers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
