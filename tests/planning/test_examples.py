"""The examples for clusters: they fit the hardware that they name, and become job scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpo_megatron.config_file import load_config
from irpo_megatron.launch.protocol import Ranks
from irpo_megatron.launch.slurm_script import Job, job_script
from irpo_megatron.launch.slurm_step import tasks_of, workers_of
from irpo_megatron.planning.hardware import DEVICES
from irpo_megatron.planning.model import find_model
from irpo_megatron.planning.plan import make_plan
from irpo_megatron.planning.workload import Given

EXAMPLES = Path(__file__).parents[2] / "examples"
OF_GPUS = sorted(path for folder in ("llama2_70b", "llama3_8b") for path in (EXAMPLES / folder).glob("*.yaml"))
of_each = pytest.mark.parametrize("path", OF_GPUS, ids=[str(path.relative_to(EXAMPLES)) for path in OF_GPUS])
H100 = DEVICES["h100-80gb"]


@of_each
def test_its_own_layout_fits_h100s(path: Path) -> None:
    config = load_config(path)
    plan = make_plan(config, find_model(config, None), H100, None, Given())
    assert plan.own.fits
    assert plan.layout is plan.own
    assert {stage.name for stage in plan.stages} >= {"generate", "train", "evaluate"}
    assert all(stage.memory is None or stage.memory < H100.memory_bytes for stage in plan.stages)


@of_each
def test_it_fills_the_nodes_that_it_asks_for(path: Path) -> None:
    config = load_config(path)
    slurm = config.launch.slurm
    assert slurm is not None
    gpus = slurm.nodes * slurm.gpus_per_node
    assert config.parallel.world_size == gpus
    assert tasks_of(Ranks(gpus), slurm.nodes, slurm.gpus_per_node).nodes == slurm.nodes
    assert config.generation.workers * workers_of(config).gpus == slurm.gpus_per_node
    command = ["irpo", "run", str(path)]
    script = job_script(Job(name=config.name, directory=Path("/w"), log=Path("/w/%j.log"), command=command), slurm)
    assert f"#SBATCH --nodes={slurm.nodes}\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script


@pytest.mark.parametrize(
    ("name", "samples", "pairs", "temperatures", "steps", "gold"),
    [
        ("gsm8k", 30, 10, (0.8, 0.8, 1.3, 1.3), 5000, True),
        ("arc", 30, 20, (0.8, 0.8, 1.3), 4000, False),
        ("math", 20, 15, (0.8, 0.8, 1.0), 5000, False),
    ],
)
def test_the_papers_settings(
    name: str, samples: int, pairs: int, temperatures: tuple[float, ...], steps: int, gold: bool
) -> None:
    """Section 3 of the paper."""
    config = load_config(EXAMPLES / "llama2_70b" / f"{name}.yaml")
    assert (config.generation.samples, config.pairs.per_prompt, config.training.max_steps) == (samples, pairs, steps)
    assert config.generation.temperature == temperatures
    assert config.iterations == len(temperatures)
    assert config.pairs.gold_as_winner is gold
    assert (config.loss.alpha, config.loss.beta, config.training.learning_rate) == (1.0, 0.1, 7e-7)
    assert (config.training.global_batch_size, config.evaluation.samples, config.evaluation.temperature) == (
        16,
        32,
        0.8,
    )
