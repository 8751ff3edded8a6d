"""The command of a step, whole, for every shape of a stage and both kinds of environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.config import Config
from irpo_megatron.config_file import validate
from irpo_megatron.launch.protocol import OneProcess, Ranks
from irpo_megatron.launch.slurm_step import Allocation, Workers, step_command, workers_of
from irpo_megatron.requests import EvaluateRequest, QuantiseRequest, Request, ScoreRequest, WorkerRequest

CPUS = Allocation(("n1", "n2"), cpus=16)
GPUS = Allocation(("n1", "n2", "n3"), cpus=96)
PATH = Path("/runs/trial/logs/it-workers.request.json")
START = ["srun", "--export=ALL", "--overlap"]
ALONE = ["--no-kill", "--kill-on-bad-exit=0", "--wait=0"]
LOGS = ["--output=/runs/trial/logs/it-worker-%t.log", "--open-mode=append"]
TOGETHER = ["--kill-on-bad-exit=1", "--wait=60"]


def config(slurm: dict[str, Any] | None = None, **sections: Any) -> Config:
    tree = {
        "name": "trial",
        "runs": "/runs",
        "task": "gsm8k",
        "data": {"train": "a.jsonl", "test": "b.jsonl"},
        "launch": {"launcher": "slurm", "slurm": {"nodes": 3, "time_limit_minutes": 60, **(slurm or {})}},
        **sections,
    }
    return validate(tree, Path("trial.yaml"))


def command(
    config: Config,
    allocation: Allocation,
    shape: OneProcess | Ranks | Workers,
    kind: type[Request] = ScoreRequest,
) -> list[str]:
    request = kind.model_construct(**kind.config_values(config))
    return step_command(config, allocation, shape, "a.module", request, PATH, port=20001)


def test_one_process_has_the_first_node() -> None:
    assert command(config(), CPUS, OneProcess()) == [
        *START,
        "--nodes=1",
        "--nodelist=n1",
        "--ntasks=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=16",
        "--mem=0",
        "--distribution=block",
        *TOGETHER,
        *[sys.executable, "-m", "irpo_megatron.process", "a.module", str(PATH)],
    ]


def test_ranks_on_nodes_with_gpus() -> None:
    slurm = {"gpus_per_node": 8, "srun": ["--cpu-bind=cores"]}
    assert command(config(slurm), GPUS, Ranks(16)) == [
        *START,
        "--nodes=2",
        "--nodelist=n1,n2",
        "--ntasks=16",
        "--ntasks-per-node=8",
        "--cpus-per-task=12",
        "--mem=0",
        "--distribution=block",
        "--gpus-per-node=8",
        *TOGETHER,
        "--cpu-bind=cores",
        *[sys.executable, "-m", "irpo_megatron.launch.slurm_rank", "ranks", "20001", "a.module", str(PATH)],
    ]


def test_workers_in_an_environment_of_their_own() -> None:
    generation = {
        "backend": "tensorrt_llm",
        "tensorrt_llm": {"tensor_parallel": 2},
        "python": "/engine/bin/python",
        "workers": 4,
    }
    of_gpus = config({"gpus_per_node": 8}, generation=generation)
    assert command(of_gpus, GPUS, workers_of(of_gpus), WorkerRequest) == [
        *START,
        "--nodes=3",
        "--nodelist=n1,n2,n3",
        "--ntasks=12",
        "--ntasks-per-node=4",
        "--cpus-per-task=24",
        "--mem=0",
        "--distribution=block",
        "--gpus-per-node=8",
        *ALONE,
        *LOGS,
        *["/engine/bin/python", "-m", "irpo_megatron.launch.slurm_rank", "workers", "2", "a.module", str(PATH)],
    ]
    assert command(of_gpus, GPUS, OneProcess(), QuantiseRequest)[-5] == "/engine/bin/python"
    # What follows the sampling needs no engine.
    assert sys.executable in command(of_gpus, GPUS, OneProcess(), EvaluateRequest)


def test_workers_on_cpus_and_those_that_ask_a_server() -> None:
    on_cpus = config(generation={"workers": 2})
    assert workers_of(on_cpus) == Workers(2, 0)
    assert "--ntasks=4" in command(on_cpus, CPUS, workers_of(on_cpus), WorkerRequest)
    server = {"backend": "openai", "openai": {"url": "http://server/v1"}}
    assert workers_of(config({"gpus_per_node": 8}, generation=server)) == Workers(1, 0)


def test_an_engine_over_nodes_goes_through_its_own_launcher() -> None:
    engine = {"tensor_parallel": 8, "pipeline_parallel": 2}
    generation = {"backend": "tensorrt_llm", "tensorrt_llm": engine, "python": "/engine/bin/python"}
    of_gpus = config({"gpus_per_node": 8}, generation=generation)
    found = command(of_gpus, GPUS, workers_of(of_gpus), WorkerRequest)
    assert found[3:8] == ["--nodes=2", "--nodelist=n1,n2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=12"]
    assert found[-7:] == [
        *["--mpi=pmix", "trtllm-llmapi-launch", "/engine/bin/python", "-m"],
        *["irpo_megatron.process", "a.module", str(PATH)],
    ]


@pytest.mark.parametrize(
    ("kind", "image"),
    [(ScoreRequest, "train"), (EvaluateRequest, "train"), (QuantiseRequest, "generate"), (WorkerRequest, "generate")],
)
def test_each_kind_of_stage_in_its_own_image(kind: type[Request], image: str) -> None:
    images = {
        "train": {"image": "/images/train.sqsh", "mounts": ["/data", "/scratch:/tmp:ro"]},
        "generate": {"image": "OWNER#engine:1", "python": "/opt/bin/python"},
    }
    here = os.getcwd()
    expected = {
        "train": [
            "--container-image=/images/train.sqsh",
            f"--container-mounts={here}:{here},/runs:/runs,/data:/data,/scratch:/tmp:ro",
            f"--container-workdir={here}",
            "python3",
        ],
        "generate": [
            "--container-image=OWNER#engine:1",
            f"--container-mounts={here}:{here},/runs:/runs",
            f"--container-workdir={here}",
            "/opt/bin/python",
        ],
    }
    found = command(config(images), CPUS, OneProcess(), kind)
    assert found[found.index("--wait=60") + 1 : -4] == expected[image]


def test_a_cluster_of_cpus_spreads_ranks_and_goes_on_with_what_is_left() -> None:
    for nodes, per_node, cpus in ((("n1", "n2"), 2, 8), (("n1",), 4, 4)):
        found = command(config(), Allocation(nodes, cpus=16), Ranks(4))
        assert f"--ntasks-per-node={per_node}" in found
        assert f"--cpus-per-task={cpus}" in found
        assert f"--nodelist={','.join(nodes)}" in found
