"""Bytes by formula against those that the engine keeps: buffers, AdamW's state, and what autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
from planning.engine_counts import LENGTHS, MEDIUM, config_of, expected_batch, run_all
from support.ranks import in_child, in_world

from irpo_megatron.config import Config, ParallelConfig, PrecisionConfig, TrainingConfig
from irpo_megatron.planning.batches import Batches
from irpo_megatron.planning.memory import Memory, in_flight, training_memory
from irpo_megatron.planning.shape import read_shape

GROUPED = MEDIUM | {"num_key_value_heads": 2}
BF16 = PrecisionConfig(dtype="bf16")
ALONE: list[tuple[Config, dict[str, Any], bool]] = [
    (config_of(), MEDIUM, True),
    (config_of(), GROUPED, False),
    (config_of(precision=BF16), MEDIUM, False),
    (config_of(precision=BF16), GROUPED, True),
    (config_of(training=TrainingConfig(recompute="selective")), GROUPED, True),
    (config_of(training=TrainingConfig(recompute="selective")), MEDIUM, False),
    (config_of(training=TrainingConfig(recompute="full")), MEDIUM, True),
]


def predicted(case: tuple[Config, dict[str, Any], bool]) -> Memory:
    config, model, shared = case
    batch = expected_batch(LENGTHS, shared=shared)
    whole = Batches(fullest=batch, count=1, total=batch)
    return training_memory(read_shape(model), config, whole, stage=0, on_cpu=True)


@pytest.fixture(scope="module")
def kept_alone() -> list[float]:
    return [kept for _, kept in in_child(run_all, ALONE)]


@pytest.mark.parametrize("case", range(len(ALONE)))
def test_activations_are_what_autograd_keeps(case: int, kept_alone: list[float]) -> None:
    assert predicted(ALONE[case]).activations == pytest.approx(kept_alone[case], rel=0.06 if case == 6 else 0.03)


@pytest.mark.parametrize(
    ("parallel", "allowed"),
    [
        (ParallelConfig(tensor=2, sequence=True), 0.04),
        # The rank that happens to have most; where the stream is cut, more keys are put together than counted.
        (ParallelConfig(context=2), 0.1),
    ],
    ids=str,
)
def test_activations_of_a_rank(parallel: ParallelConfig, allowed: float) -> None:
    cases = [(config_of(parallel=parallel), MEDIUM, shared) for shared in (True, False)]
    ranks = in_world(2, run_all, cases)
    for number, case in enumerate(cases):
        kept = max(rank[number][1] for rank in ranks)
        assert predicted(case).activations == pytest.approx(kept, rel=allowed)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_buffers_and_adamw_are_what_the_optimizer_holds(dtype: Any) -> None:
    config = config_of(precision=PrecisionConfig(dtype=dtype), parallel=ParallelConfig(data=2))
    memory = predicted((config, MEDIUM, True))
    for weights, gradients, state in in_world(2, _held, config):
        assert memory.weights == pytest.approx(weights, rel=0.002)  # buffers are filled up
        assert memory.gradients == pytest.approx(gradients, rel=0.002)
        assert memory.optimizer == pytest.approx(state, rel=0.002)


def _held(config: Config) -> tuple[int, int, int]:
    """Bytes of the weights' buffer, of the gradients', and of AdamW's state after a step."""
    import torch

    from irpo_megatron.engine.architecture import read_architecture
    from irpo_megatron.engine.model import build_model
    from irpo_megatron.engine.optimizer import Optimizer
    from irpo_megatron.engine.parallel import parallel_world

    with parallel_world(config.parallel, threads=1, precision=config.precision) as place:
        optimizer = Optimizer(build_model(read_architecture(MEDIUM), place), config.training, place, steps=1)
        optimizer.zero_gradients()
        for wrapped in optimizer.model:
            wrapped.finish_grad_sync()
        optimizer.step()
        buffers = optimizer.model[0].buffers
        (part,) = optimizer._adam.chained_optimizers
        tensors: list[torch.Tensor] = []
        for state in part.optimizer.state.values():
            tensors += [state["exp_avg"], state["exp_avg_sq"]]
        if config.precision.dtype == "bf16":
            tensors += [tensor for group in part.shard_fp32_from_float16_groups for tensor in group]
        return (
            sum(buffer.param_data.nbytes for buffer in buffers),
            sum(buffer.grad_data.nbytes for buffer in buffers),
            sum(tensor.nbytes for tensor in tensors),
        )


@pytest.mark.parametrize(
    ("virtual", "stage", "micro_batches", "layers", "batches"),
    [
        (1, 0, 8, 16, 4),  # 1F1B: the first stage waits for all the others
        (1, 3, 8, 4, 1),
        (1, 0, 2, 8, 2),  # no more than there are
        (2, 0, 8, 22, 11),  # 2 x 3 + 4 in the warm-up, and the one at work, of 2 layers each
        (2, 3, 8, 10, 5),
    ],
)
def test_what_waits_on_a_pipeline_stage(
    virtual: int, stage: int, micro_batches: int, layers: float, batches: int
) -> None:
    parallel = ParallelConfig(pipeline=4, virtual_pipeline=virtual)
    assert in_flight(16, parallel, micro_batches, stage=stage) == (layers, batches)


def test_logits_are_a_chunk() -> None:
    """2,048 tokens of vocabulary in fp32 a row: 1 MiB holds 128 of the 506 that are predicted."""
    batch = expected_batch(LENGTHS, shared=True)
    small = predicted((config_of(training=TrainingConfig(log_prob_mib=1)), MEDIUM, True))
    whole = predicted((config_of(), MEDIUM, True))
    hidden = 2 * batch.predicted * MEDIUM["hidden_size"] * 4
    assert batch.predicted == 508
    assert whole.logits - hidden == 508 * 2048 * 4
    assert small.logits - hidden == 508 / 4 * 2048 * 4
