"""Training goes on from a checkpoint as if it had not stopped, with torch's AdamW, at this layout or another."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ranks import in_world
from support.tiny_architecture import TINY

from irpo_megatron.config import ParallelConfig, TrainingConfig
from irpo_megatron.engine.checkpoint import CheckpointWriter, load_training
from irpo_megatron.engine.model import build_model
from irpo_megatron.engine.optimizer import Optimizer, sum_gradients
from irpo_megatron.engine.parallel import parallel_world

ARCHITECTURE = replace(TINY, layers=2)
TRAINING = TrainingConfig(learning_rate=1e-2, weight_decay=0.1, clip_gradient=0.0, adam_beta2=0.9)
SAVED, STEPS = 3, 6

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is not for several processes of one test")


def _random(name: str, step: int, shape: torch.Size) -> torch.Tensor:
    """Step -1 gives the weights, the others their gradients."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    return torch.randn(shape, generator=generator)


def _train(data: int, resume: Path | None, save: Path | None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """(weights after `STEPS` steps, each parameter's own count of steps)."""
    with parallel_world(ParallelConfig(data=data), threads=1) as place:
        (model,) = build_model(ARCHITECTURE, place)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(_random(name, -1, parameter.shape))
        optimizer = Optimizer([model], TRAINING, place, steps=STEPS)
        if resume is not None:
            load_training(resume, [model], optimizer)
        for step in range(SAVED if resume is not None else 0, STEPS):
            if step == SAVED and save is not None:
                writer = CheckpointWriter(asynchronous=False)
                writer.save_training(save, [model], optimizer, {}, then=lambda: None)
            optimizer.zero_gradients()
            for name, parameter in parameters.items():
                # Data-parallel ranks sum their gradients: here the whole comes from the last one.
                if place.data_rank == data - 1:
                    parameter.main_grad.copy_(_random(name, step, parameter.shape))
            sum_gradients(optimizer.model, None)
            optimizer.step()
        (part,) = optimizer._adam.chained_optimizers
        counts = [float(state["step"]) for state in part.optimizer.state.values()]
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}, counts


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of the middle, and the weights at the end."""
    checkpoint = tmp_path_factory.mktemp("adam") / "step-000003"
    ((weights, counts),) = in_world(1, _train, 1, None, checkpoint)
    assert set(counts) == {STEPS}
    return checkpoint, weights


def test_the_updates_are_adamws(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """By its formula in float64; norms are not decayed."""
    for name, ours in trained[1].items():
        weight = _random(name, -1, ours.shape).double()
        first = second = torch.zeros_like(weight)
        for step in range(STEPS):
            gradient = _random(name, step, ours.shape).double()
            weight = weight * (1 - 1e-2 * (0.1 if weight.ndim > 1 else 0.0))
            first, second = 0.9 * first + 0.1 * gradient, 0.9 * second + 0.1 * gradient**2
            mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
            weight = weight - 1e-2 * mean / (spread.sqrt() + 1e-8)
        torch.testing.assert_close({name: ours.double()}, {name: weight}, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("data", [1, 2, 3])
def test_resumed_it_ends_at_the_same_weights(data: int, trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """An update is computed number by number, so the layout leaves no trace."""
    checkpoint, expected = trained
    for weights, counts in in_world(data, _train, data, checkpoint, None):
        assert set(counts) == {STEPS}, "every parameter has counted its own steps"
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name]), name


def test_a_checkpoint_of_two_ranks_is_read_by_one(
    trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "step-000003"
    in_world(2, _train, 2, None, checkpoint)
    ((weights, _),) = in_world(1, _train, 1, checkpoint, None)
    assert all(torch.equal(weights[name], expected) for name, expected in trained[1].items())
