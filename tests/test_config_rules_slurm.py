"""What `launch.slurm` may not say: each refusal names the value seen, the rule and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.config import Config
from irpo_megatron.config_file import validate
from irpo_megatron.config_rules import check_sections
from irpo_megatron.errors import UserError

ENGINE = {"backend": "tensorrt_llm"}


def config(slurm: dict[str, Any] | None, **sections: Any) -> Config:
    job = None if slurm is None else {"nodes": 2, "time_limit_minutes": 60, **slurm}
    tree = {
        "name": "run",
        "task": "gsm8k",
        "model": {"path": "model"},
        "data": {"train": "a.jsonl", "test": "b.jsonl"},
        "launch": {"launcher": "slurm", "slurm": job},
        **sections,
    }
    return validate(tree, Path("run.yaml"))


def refusal(slurm: dict[str, Any] | None, **sections: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        check_sections(config(slurm, **sections))
    return caught.value


def test_a_job_needs_its_section() -> None:
    assert refusal(None).seen == "launch.launcher = slurm, launch.slurm = null"


@pytest.mark.parametrize(
    ("slurm", "sections", "seen"),
    [
        ({"warning_minutes": 60}, {}, "launch.slurm.warning_minutes = 60, time_limit_minutes = 60"),
        (
            {"gpus_per_node": 8},
            {"parallel": {"data": 32}, "training": {"global_batch_size": 32}},
            "launch.slurm has 2 x 8 GPUs, parallel.* makes 32 ranks",
        ),
        (
            {"gpus_per_node": 8},
            {"generation": {**ENGINE, "tensorrt_llm": {"tensor_parallel": 12}}},
            "launch.slurm has 2 x 8 GPUs, generation.workers = 1 of 12 GPUs",
        ),
        (
            {"gpus_per_node": 8},
            {"generation": {**ENGINE, "tensorrt_llm": {"tensor_parallel": 8, "pipeline_parallel": 4}}},
            "launch.slurm has 2 x 8 GPUs, generation.workers = 1 of 32 GPUs",
        ),
        (
            {"gpus_per_node": 8},
            {"generation": {**ENGINE, "tensorrt_llm": {"tensor_parallel": 4}, "workers": 3}},
            "launch.slurm has 2 x 8 GPUs, generation.workers = 3 of 4 GPUs",
        ),
        (
            {"generate": {"image": "engine"}},
            {"generation": {"python": "/engine/bin/python"}},
            "generation.python = /engine/bin/python, and launch.slurm.generate has an image",
        ),
        ({"sbatch": ["--export=TOKEN=x"]}, {}, "launch.slurm.sbatch has --export=TOKEN=x"),
        ({"sbatch": ["--exp=TOKEN=x"]}, {}, "launch.slurm.sbatch has --exp=TOKEN=x"),
        ({"srun": ["--cpu-bind=cores", "--nodes=1"]}, {}, "launch.slurm.srun has --nodes=1"),
    ],
)
def test_what_does_not_go_together(slurm: dict[str, Any], sections: dict[str, Any], seen: str) -> None:
    assert refusal(slurm, **sections).seen == seen


@pytest.mark.parametrize(
    ("slurm", "key"),
    [
        ({"time_limit_minutes": "4:00:00"}, "launch.slurm.time_limit_minutes"),
        ({"nodes": 0}, "launch.slurm.nodes"),
        ({"partition": "a\n#SBATCH --wrap=x"}, "launch.slurm.partition"),
        ({"sbatch": ["--comment=a\nrm -r x"]}, "launch.slurm.sbatch"),
        ({"sbatch": ["hold"]}, "launch.slurm.sbatch"),
        ({"train": {}}, "launch.slurm.train.image"),
        ({"train": {"image": "i", "mounts": ["data"]}}, "launch.slurm.train.mounts"),
        ({"train": {"image": "i", "mounts": ["/a:/b:/c"]}}, "launch.slurm.train.mounts"),
        ({"train": {"image": "i", "mounts": ["/a,/b"]}}, "launch.slurm.train.mounts"),
    ],
)
def test_what_no_key_takes(slurm: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        config(slurm)
    assert key in caught.value.seen


@pytest.mark.parametrize(
    ("slurm", "sections"),
    [
        ({}, {"parallel": {"data": 16}}),
        ({"gpus_per_node": 8}, {"parallel": {"tensor": 8, "data": 2}}),
        ({"gpus_per_node": 8}, {"generation": {**ENGINE, "tensorrt_llm": {"tensor_parallel": 16}}}),
        ({"gpus_per_node": 8}, {"generation": {**ENGINE, "tensorrt_llm": {"tensor_parallel": 3}}}),
        ({"sbatch": ["--constraint=h100", "--time-min=30"], "srun": ["--wait=5", "--cpu-bind=cores"]}, {}),
        ({"train": {"image": "HOST#o/n:1", "mounts": ["/a", "/a:/b", "/a:/b:ro+rbind"]}}, {}),
    ],
)
def test_what_does(slurm: dict[str, Any], sections: dict[str, Any]) -> None:
    check_sections(config(slurm, **sections))


def test_launcher_local_does_not_care() -> None:
    slurm = {"nodes": 1, "gpus_per_node": 1, "time_limit_minutes": 1}
    check_sections(config({}, launch={"launcher": "local", "slurm": slurm}, parallel={"data": 4}))
