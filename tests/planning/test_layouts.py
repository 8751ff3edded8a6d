"""Which layouts are found, in which order, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning.engine_counts import config_of

from irpo_megatron.config import Config, ParallelConfig, TrainingConfig
from irpo_megatron.errors import UserError
from irpo_megatron.planning.batches import Lengths, rank_batches
from irpo_megatron.planning.hardware import DEVICES, find_device
from irpo_megatron.planning.known_shapes import KNOWN_CONFIGS
from irpo_megatron.planning.layouts import Problem, check, evaluate, refused, search
from irpo_megatron.planning.shape import read_shape
from irpo_megatron.planning.tables import why_not

LENGTHS = Lengths(prompt=120, completion=250, longest_prompt=300, longest_completion=512)


def problem(model: str = "llama2-7b", device: str = "h100-80gb", **changes: Any) -> Problem:
    config = KNOWN_CONFIGS[model]
    return Problem(
        model=config,
        shape=read_shape(config),
        lengths=LENGTHS,
        device=replace(DEVICES[device], **changes),
    )


def bf16(**sections: Any) -> Config:
    return config_of(precision={"dtype": "bf16"}, **sections)


def test_every_layout_found_is_allowed_takes_all_devices_and_fits() -> None:
    found = search(problem(), bf16(), 8)
    for layout in found.fitting:
        check(problem(), layout.config)
        assert layout.config.parallel.world_size == 8
        assert layout.memory.total <= 80e9 * 0.9
        assert why_not(layout) == ""
    times = [layout.step.total for layout in found.fitting]
    assert times == sorted(times)


def test_what_does_not_fit_says_by_how_much_and_why() -> None:
    found = search(problem(memory_bytes=30e9), bf16(), 8)
    assert found.fitting
    nearest = found.too_large[0]
    assert nearest.memory.total > 27e9
    assert "GB too much; most is" in why_not(nearest)
    assert [layout.memory.total for layout in found.too_large] == sorted(
        layout.memory.total for layout in found.too_large
    )


def test_sizes_that_the_rules_forbid() -> None:
    """Llama-2-70B has 8 key-value heads and 80 layers; 16 pairs a batch."""
    lines = refused(problem("llama2-70b"), bf16(), 64)
    assert lines[0] == "parallel.tensor = 16, 32, 64: parallel.tensor divides num_key_value_heads"
    assert lines[1] == "parallel.pipeline = 32, 64: parallel.pipeline divides num_hidden_layers"
    assert lines[2].startswith("parallel.data = 32, 64: the global batch")


def test_a_number_of_devices_that_no_layout_takes() -> None:
    with pytest.raises(UserError) as caught:
        search(problem(), bf16(), 7)
    assert "--gpus 7" in caught.value.seen


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        ({"tensor": 2, "sequence": True}, {"tensor": 2}),
        ({"tensor": 4, "sequence": True}, {"tensor": 2, "sequence": True}),
        ({"pipeline": 4}, {"pipeline": 2}),
        ({"data": 4}, {"data": 2}),
        ({"context": 4}, {"context": 2}),
    ],
)
def test_cutting_further_takes_less_memory(cheaper: dict[str, Any], dearer: dict[str, Any]) -> None:
    sizes = [
        evaluate(problem(), bf16(parallel=ParallelConfig(**parallel))).memory.total for parallel in (cheaper, dearer)
    ]
    assert sizes[0] < sizes[1]


def test_recomputing_takes_less_memory_and_more_time() -> None:
    kinds = ("none", "selective", "full")
    layouts = [evaluate(problem(), bf16(training=TrainingConfig(recompute=kind))) for kind in kinds]
    memory = [layout.memory.activations for layout in layouts]
    assert memory == sorted(memory, reverse=True)
    assert layouts[0].step.compute < layouts[1].step.compute < layouts[2].step.compute


def test_an_interleaved_pipeline_bubbles_less_and_fills_its_micro_batches_up() -> None:
    parallel = {"pipeline": 4, "data": 2}
    training = TrainingConfig(micro_batch_tokens=2048)
    plain, interleaved = (
        evaluate(problem(), bf16(training=training, parallel=ParallelConfig(virtual_pipeline=virtual, **parallel)))
        for virtual in (1, 2)
    )
    # 8 pairs of 2 x 369 tokens on a rank, two a micro-batch.
    assert plain.batches.count == interleaved.batches.count == 4
    assert interleaved.step.bubble < plain.step.bubble
    uneven = bf16(
        training=TrainingConfig(micro_batch_tokens=4096), parallel=ParallelConfig(virtual_pipeline=2, **parallel)
    )
    batches = rank_batches(uneven, LENGTHS, shared=False)
    assert batches.count == 4  # two are needed
    assert batches.total.tokens == (8 + 2) * 2 * 369


def test_a_pair_longer_than_the_budget_is_a_micro_batch_of_its_own() -> None:
    batches = rank_batches(config_of(training=TrainingConfig(micro_batch_tokens=256)), LENGTHS, shared=True)
    assert batches.count == 16
    assert batches.fullest.tokens == 300 + 2 * 511


def test_padding_fills_up_to_the_longest() -> None:
    batches = rank_batches(config_of(training=TrainingConfig(micro_batch_size=4)), LENGTHS, shared=True)
    assert batches.count == 4
    assert batches.fullest.tokens == 4 * (300 + 2 * 511)


def test_an_unknown_device_is_refused_with_those_known() -> None:
    with pytest.raises(UserError, match="h100-80gb"):
        find_device("rtx-4090")


def test_numbers_that_a_device_does_not_have() -> None:
    with pytest.raises(UserError, match="a100-80gb has no matrix products in fp8"):
        DEVICES["a100-80gb"].peak("fp8")
