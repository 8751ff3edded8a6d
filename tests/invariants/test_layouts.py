"""One trajectory, whatever the layout and the batching: that of an independent float64 implementation of equation 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support.layouts import final_weights, metrics_of, run_variants
from support.worlds import (
    FEW_TOKENS,
    MANY_TOKENS,
    ONE_PAIR,
    TWO_PAIRS,
    World,
    assert_same_steps,
    assert_same_weights,
    last_checkpoint,
    make_family_worlds,
)

from irpo_megatron.config import ParallelConfig

# Logits of four tokens over the whole vocabulary; the configuration knows whole MiB only, which hold all of a step's.
IN_CHUNKS = {"log_prob_mib": 512 / 2**20}

# Keys of `training` that must not change its result: here every value of each with every value of each other, ...
ALL_PAIRWISE: list[dict[str, Any]] = [
    {
        **batching,
        "shared_prompt": (row + column) % 2 == 0,
        "recompute": recompute,
        **(IN_CHUNKS if column == row % 3 else {}),
    }
    for row, batching in enumerate([FEW_TOKENS, MANY_TOKENS, ONE_PAIR, TWO_PAIRS])
    for column, recompute in enumerate(["none", "selective", "full"])
]
# ... and here every value at least once.
FOUR: list[dict[str, Any]] = [
    {**FEW_TOKENS, "shared_prompt": True, "recompute": "none"},
    {**ONE_PAIR, "shared_prompt": False, "recompute": "none"},
    {**TWO_PAIRS, "shared_prompt": True, "recompute": "selective", **IN_CHUNKS},
    {**MANY_TOKENS, "shared_prompt": False, "recompute": "full"},
]


def name_of(parallel: ParallelConfig) -> str:
    return "-".join(f"{key}{int(value)}" for key, value in parallel.model_dump(exclude_defaults=True).items())


def follow(parallel: ParallelConfig, trained: Sequence[tuple[World, dict[str, Any]]]) -> None:
    """Train at the layout, each model in its way, and require the trajectory of float64."""
    variants = [
        world.variant(f"{name_of(parallel)}-{number}", parallel, **training)
        for number, (world, training) in enumerate(trained)
    ]
    run_variants(parallel.world_size, variants)
    weights = final_weights([last_checkpoint(variant) for variant in variants])
    for (world, _), variant, found in zip(trained, variants, weights, strict=True):
        assert_same_steps(variant, metrics_of(variant), world.expected, has_pairs=world.method == "irpo")
        assert_same_weights(variant, found, world.expected)


def test_one_process_whatever_the_batching(worlds: dict[str, World]) -> None:
    trained = [(worlds["untied"], training) for training in ALL_PAIRWISE]
    follow(ParallelConfig(), [*trained, (worlds["tied"], FOUR[0]), (worlds["star"], FOUR[0])])


# Grouped-query attention of two key-value heads: each tensor-parallel rank has one.
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(tensor=2),
        ParallelConfig(tensor=2, sequence=True),
        ParallelConfig(pipeline=2),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
        ParallelConfig(context=2),
        ParallelConfig(data=2),
    ],
    ids=name_of,
)
def test_two_processes(worlds: dict[str, World], parallel: ParallelConfig) -> None:
    # Tied, the embedding of the first pipeline stage and the output matrix of the last are to stay equal.
    follow(parallel, [*((worlds["untied"], training) for training in FOUR), (worlds["tied"], FOUR[0])])


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(tensor=2, pipeline=2),
        ParallelConfig(tensor=2, data=2),
        ParallelConfig(tensor=2, context=2, sequence=True),
        ParallelConfig(pipeline=2, data=2),
    ],
    ids=name_of,
)
def test_four_processes(worlds: dict[str, World], parallel: ParallelConfig) -> None:
    follow(parallel, [(worlds["untied"], training) for training in FOUR[1:]])


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(tensor=2, context=2),
        ParallelConfig(tensor=2, sequence=True, pipeline=2, virtual_pipeline=2),
        ParallelConfig(context=2, pipeline=2),
        ParallelConfig(context=2, data=2),
        ParallelConfig(data=4),
    ],
    ids=name_of,
)
def test_other_layouts_of_four(worlds: dict[str, World], parallel: ParallelConfig) -> None:
    follow(parallel, [(worlds["star"], FOUR[0]), (worlds["tied"], FOUR[3])])


@pytest.fixture(scope="module")
def family_worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return make_family_worlds(tmp_path_factory.mktemp("families"))


# A norm over heads is held whole by every tensor-parallel rank, and each sees other heads: gradients have to be added,
# with sequence parallelism and without. A bias is cut as the rows that it belongs to.
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(tensor=2),
        ParallelConfig(tensor=2, sequence=True),
        ParallelConfig(pipeline=2),
        ParallelConfig(context=2),
    ],
    ids=lambda parallel: name_of(parallel) or "one",
)
def test_what_a_family_has_of_its_own(family_worlds: dict[str, World], parallel: ParallelConfig) -> None:
    follow(parallel, [(world, FOUR[0]) for world in family_worlds.values()])
