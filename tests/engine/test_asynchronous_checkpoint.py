"""Checkpoints written while training goes on: there once they are whole, with the numbers of when they were begun."""

from __future__ import annotations

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

ARCHITECTURE = TINY
Weights = dict[str, torch.Tensor]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is not for several processes of one test")


def _save_and_look(data: int, root: Path) -> tuple[list[bool], list[str], Weights, list[Weights]]:
    """(was it there after each act, what was called, weights when saving began, weights of both checkpoints)."""
    with parallel_world(ParallelConfig(data=data), threads=1) as place:
        (model,) = build_model(ARCHITECTURE, place)
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) / (number + 1))
        optimizer = Optimizer([model], TrainingConfig(learning_rate=0.1), place, steps=9)

        def take_a_step() -> None:
            optimizer.zero_gradients()
            for parameter in model.parameters():
                parameter.main_grad.copy_(parameter.detach() / data)
            sum_gradients(optimizer.model, None)
            optimizer.step()

        def weights() -> Weights:
            return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

        take_a_step()
        saved, called = weights(), []
        CheckpointWriter(asynchronous=False).save_training(
            root / "at-once", [model], optimizer, {}, then=lambda: called.append("at once")
        )
        writer, folder = CheckpointWriter(asynchronous=True), root / "meanwhile"
        writer.save_training(folder, [model], optimizer, {}, then=lambda: called.append("meanwhile"))
        there = [folder.exists()]
        take_a_step()  # while it is being written
        (call,) = writer._queue.async_calls
        if call.async_caller.process is not None:
            call.async_caller.process.join()
        torch.distributed.barrier()
        there.append(folder.exists())
        writer.look()
        there.append(folder.exists())
        # The next one waits for it, so that one at a time is written.
        writer.save_model(root / "second", [model], {"model": "second"})
        writer.save_model(root / "third", [model], {"model": "third"})
        there.append((root / "second" / "config.json").exists())
        there.append((root / "third").exists())
        writer.finish()
        there.append((root / "third" / "config.json").exists())

        loaded = []
        for name in ("at-once", "meanwhile"):
            load_training(root / name, [model], optimizer)
            take_a_step()  # moments included
            loaded.append(weights())
        return there, called, saved, loaded


@pytest.mark.parametrize("data", [1, 2])
def test_it_appears_when_it_is_whole_and_somebody_looks(data: int, tmp_path: Path) -> None:
    for rank, (there, called, saved, loaded) in enumerate(in_world(data, _save_and_look, data, tmp_path)):
        assert there == [False, False, True, True, False, True]
        assert called == (["at once", "meanwhile"] if rank == 0 else [])
        at_once, meanwhile = loaded
        for name, weight in at_once.items():
            assert torch.equal(meanwhile[name], weight), name
            assert not torch.equal(weight, saved[name]), "the step behind it changes all"
    assert not list(tmp_path.glob("*.partial"))
