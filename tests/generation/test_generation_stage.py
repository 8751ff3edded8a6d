"""The stage: which problems, which settings, and the whole of it in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.generation import make_request
from support.stages import run_request, run_sampling

from irpo_megatron.artifacts import Progress, read_json
from irpo_megatron.claims import how_far
from irpo_megatron.config import DataConfig, SelectionConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation import stage, worker
from irpo_megatron.generation.jobs import problems_of
from irpo_megatron.records import Problem, Sample, read_rows
from irpo_megatron.requests import GenerateRequest, WorkerRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task


def run(request: GenerateRequest) -> None:
    """Both halves of the stage in this process: what a worker does, and what is done with its shards."""
    worker.run(WorkerRequest.of(request))
    stage.run(request)


def drawn(request: GenerateRequest) -> list[str]:
    """The ids of the problems that are sampled."""
    (job,) = request.sampling()
    return [problem.id for problem in problems_of(job, seed=request.seed, iteration=request.iteration)]


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
    assert how_far(tmp_path) == Progress(done=48, total=48, unit="samples")


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
    draws = [
        drawn(make_request(tmp_path, problems, tmp_path, data=data, **changes))
        for changes in ({"iteration": 1}, {"iteration": 1}, {"iteration": 2}, {"iteration": 1, "seed": 4})
    ]
    assert all(len(set(ids)) == 5 and ids == sorted(ids) for ids in draws)
    assert draws[0] == draws[1]
    assert len({tuple(ids) for ids in draws}) == 3


def test_a_subset_as_large_as_the_data_is_all_of_it(tmp_path: Path, problems: Path) -> None:
    for wanted in (12, 13):
        data = DataConfig(train="x", test="x", problems_per_iteration=wanted)
        assert len(drawn(make_request(tmp_path, problems, tmp_path, data=data))) == 12


def test_held_out_problems_are_sampled_where_retraining_uses_them(tmp_path: Path, problems: Path) -> None:
    request = make_request(
        tmp_path,
        problems,
        tmp_path,
        selection=SelectionConfig(held_out=3, retrain=True),
        data=DataConfig(train="x", test="x", problems_per_iteration=2),
    )
    assert [identity.split("-")[0] for identity in drawn(request)] == ["train"] * 2 + ["held_out"] * 3


def test_too_many_truncated_samples_stop_the_workers_early(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    changes = {"max_truncated_share": 0.1, "max_tokens": 2}
    with pytest.raises(UserError, match="cut off at 2 tokens"):
        run(make_request(tmp_path / "many", problems, digits_folder, samples=64, shard_prompts=2, **changes))
    assert 2 <= len(list((tmp_path / "many").glob("*.parquet"))) < 6
    with pytest.raises(UserError, match="of 48 samples"):
        run(make_request(tmp_path / "few", problems, digits_folder, **changes))
    assert len(list((tmp_path / "few").glob("*.parquet"))) == 3
    run(make_request(tmp_path / "few", problems, digits_folder, max_tokens=2))  # the limit may be raised


def test_what_was_of_no_use_is_recorded(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    run(make_request(tmp_path, problems, digits_folder))
    rows = read_rows(tmp_path, Sample)
    found = read_json(tmp_path / "guard.json")
    shards = found.pop("shards")
    assert list(shards) == [f"generations-0000{n}" for n in range(3)]
    assert [shard["samples"] for shard in shards.values()] == [20, 20, 8]
    assert all(sum(shard[kind] for shard in shards.values()) == count for kind, count in found.items())
    assert found == {
        "samples": 48,
        "empty": sum(not row.completion.strip() for row in rows),
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "repeated": found["repeated"],
        "unparsable": sum("Final answer:" not in row.completion for row in rows),
    }


def test_shards_that_nobody_counted_are_counted_at_the_end(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    request = make_request(tmp_path, problems, digits_folder)
    run(request)
    before = read_json(tmp_path / "guard.json")
    shutil.rmtree(tmp_path / "claims")
    stage.run(request)
    assert read_json(tmp_path / "guard.json") == before


def test_processes_leave_shards_or_the_error(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    run(make_request(tmp_path / "here", problems, digits_folder))
    request = make_request(tmp_path / "there", problems, digits_folder, workers=2, shard_prompts=1)
    run_sampling(request)
    run_request("irpo_megatron.generation.stage", request)
    assert read_rows(tmp_path / "there", Sample) == read_rows(tmp_path / "here", Sample)
    with pytest.raises(UserError, match="longest prompt"):
        run_sampling(make_request(tmp_path / "long", problems, digits_folder, max_tokens=127))


def test_importing_the_room_brings_no_engine_along() -> None:
    modules = [path.stem for path in (Path(__file__).parents[2] / "irpo_megatron" / "generation").glob("*.py")]
    imports = "; ".join(f"import irpo_megatron.generation.{name}" for name in modules if name != "__init__")
    check = f"import sys; {imports}; assert not {{'torch', 'transformers', 'tokenizers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
