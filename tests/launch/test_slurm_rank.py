"""Who a task of a step is: against the places that Slurm's block distribution gives out."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.obedient_stage import ObedientRequest

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.launch.protocol import OneProcess, Ranks
from irpo_megatron.launch.slurm_rank import first_host, rank_variables, worker_variables
from irpo_megatron.launch.slurm_step import Tasks, Workers, tasks_of
from irpo_megatron.request_files import events_path


def placed(tasks: Tasks, hosts: list[str]) -> list[dict[str, str]]:
    """The variables of each task as Slurm hands them out block by block, and where it is."""
    names = ",".join(hosts[: tasks.nodes])
    return [
        {
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % tasks.per_node),
            "SLURM_STEP_NUM_TASKS": str(tasks.count),
            "SLURM_STEP_NODELIST": names,
            "here": hosts[task // tasks.per_node],
        }
        for task in range(tasks.count)
    ]


@given(nodes=st.integers(1, 9), gpus=st.integers(0, 8), data=st.data())
def test_every_rank_has_a_gpu_of_its_own(nodes: int, gpus: int, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, nodes * gpus or 40))
    tasks = tasks_of(Ranks(world), nodes, gpus)
    assert tasks.nodes <= nodes
    places = placed(tasks, [f"n{index}" for index in range(nodes)])
    ranks = [rank_variables(place, port=20000) for place in places]
    assert [rank["RANK"] for rank in ranks] == [str(index) for index in range(world)]
    assert {rank["WORLD_SIZE"] for rank in ranks} == {str(world)}
    assert {(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks} == {("n0", "20000")}
    assert places[0]["here"] == "n0", "rank 0 is where the others look for it"
    seats = [(place["here"], rank["LOCAL_RANK"]) for place, rank in zip(places, ranks, strict=True)]
    assert len(set(seats)) == world
    if gpus:
        assert all(int(seat) < gpus for _, seat in seats)
        assert tasks.nodes == math.ceil(world / gpus), "no node is begun before the one before it is full"
    else:
        assert tasks.per_node == math.ceil(world / nodes), "a cluster of CPUs is used evenly"


@given(nodes=st.integers(1, 9), gpus=st.integers(1, 8), data=st.data())
def test_workers_share_out_the_gpus_of_their_nodes(nodes: int, gpus: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, gpus))
    workers = Workers(data.draw(st.integers(1, gpus // size)), size)
    tasks = tasks_of(workers, nodes, gpus)
    assert tasks.nodes == nodes
    visible = ",".join(str(gpu) for gpu in range(gpus))
    taken = []
    for place in placed(tasks, [f"n{index}" for index in range(nodes)]):
        group = worker_variables(place | {"CUDA_VISIBLE_DEVICES": visible}, gpus=size)["CUDA_VISIBLE_DEVICES"]
        taken += [(place["here"], gpu) for gpu in group.split(",")]
    assert len(taken) == len(set(taken)) == nodes * workers.per_node * size


def test_workers_without_gpus_are_left_as_they_are() -> None:
    assert worker_variables({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, gpus=0) == {}
    assert worker_variables({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": ""}, gpus=1) == {}


def test_one_process_and_an_engine_over_nodes() -> None:
    assert tasks_of(OneProcess(), nodes=4, gpus_per_node=8) == Tasks(1, 1)
    assert tasks_of(Workers(1, 16), nodes=4, gpus_per_node=8) == Tasks(16, 8)
    assert tasks_of(Workers(2, 0), nodes=4, gpus_per_node=0) == Tasks(8, 2)


NUMBERS = st.integers(0, 120).flatmap(lambda number: st.sampled_from([f"{number}", f"{number:03d}"]))
BRACKETS = st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=3)
NAMES = st.from_regex(r"\A[a-z][a-z0-9.-]{0,5}\Z")


@st.composite
def entries(draw: st.DrawFn) -> tuple[str, str]:
    """An entry of a host list, and its first host: both made from the same parts."""
    text = first = draw(NAMES)
    for bracket in draw(st.lists(BRACKETS, max_size=2)):
        inner = ",".join(f"{start}-{int(start) + 3}" if is_range else start for start, is_range in bracket)
        name = draw(st.sampled_from(["", "-ib"]))
        text, first = f"{text}[{inner}]{name}", f"{first}{bracket[0][0]}{name}"
    return text, first


@given(st.lists(entries(), min_size=1, max_size=3))
def test_the_first_host_of_a_list(parts: list[tuple[str, str]]) -> None:
    assert first_host(",".join(text for text, _ in parts)) == parts[0][1]


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node7", "node7"), ("rack[2-3]n[07-12,20]-ib,x", "rack2n07-ib"), ("127.0.0.[1-2]", "127.0.0.1")],
)
def test_known_host_lists(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("kind", "number", "told", "log"),
    [("ranks", "20123", ("5", "1", "8"), "rank-0005.jsonl"), ("workers", "0", (None, None, None), "worker-0005.jsonl")],
)
def test_a_task_becomes_the_stage(
    kind: str, number: str, told: tuple[str | None, ...], log: str, tmp_path: Path
) -> None:
    """The whole way from Slurm's variables to what a stage sees."""
    write_json(
        tmp_path / "request.json",
        ObedientRequest.model_validate({"output": tmp_path, "iteration": 1}).model_dump(mode="json"),
    )
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    arguments = [kind, number, "support.obedient_stage", str(tmp_path / "request.json")]
    command = [sys.executable, "-m", "irpo_megatron.launch.slurm_rank", *arguments]
    subprocess.run(command, env={**os.environ, **slurm}, stdin=subprocess.DEVNULL, check=True)
    report = read_json(tmp_path / f"rank-{told[0] or 0}.json")
    assert (report["RANK"], report["LOCAL_RANK"], report["WORLD_SIZE"]) == told
    assert [path.name for path in events_path(tmp_path / "request.json").iterdir()] == [log]
