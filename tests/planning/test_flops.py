"""FLOPs by formula against torch's own counter, on the engine's model."""

from __future__ import annotations

import itertools

import pytest
from planning.engine_counts import LENGTHS, MEDIUM, TINY, config_of, expected_batch, run_all
from support.ranks import in_child

from irpo_megatron.config import TrainingConfig
from irpo_megatron.planning.flops import training_flops
from irpo_megatron.planning.memory import logits_fit
from irpo_megatron.planning.shape import read_shape

TRAININGS = [{}, {"log_prob_mib": 1}, {"recompute": "selective"}, {"recompute": "full"}]
CASES = [
    (config_of(training=TrainingConfig(**training)), model, shared)
    for model, shared, training in itertools.product((TINY, MEDIUM), (True, False), TRAININGS)
]


@pytest.fixture(scope="module")
def counted() -> list[float]:
    """By torch, a case each."""
    return [flops for flops, _ in in_child(run_all, CASES)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_training_flops_are_those_that_torch_counts(case: int, counted: list[float]) -> None:
    config, model, shared = CASES[case]
    shape, batch = read_shape(model), expected_batch(LENGTHS, shared=shared)
    again = not logits_fit(shape, config, batch)
    assert again == (config.training.log_prob_mib == 1)
    expected = training_flops(shape, batch, recompute=config.training.recompute, logits_again=again)
    assert expected.total == pytest.approx(counted[case], rel=0.02)
