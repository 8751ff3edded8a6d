"""Parameters of whole models, and of every rank: counted by formula and by the engine's own model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ranks import in_world

from irpo_megatron.config import ParallelConfig
from irpo_megatron.errors import UserError
from irpo_megatron.planning.known_shapes import KNOWN_CONFIGS, known_name
from irpo_megatron.planning.shape import rank_parameters, read_shape

# As transformers counts them (`model.num_parameters()`), and as the model cards say.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
}
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 29,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
MODELS: list[dict[str, Any]] = [
    SMALL,
    SMALL | {"tie_word_embeddings": True},
    SMALL | {"model_type": "qwen2"},
    SMALL | {"model_type": "qwen3", "head_dim": 6},
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_shape_has_the_published_parameters(name: str) -> None:
    assert read_shape(KNOWN_CONFIGS[name]).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(tensor=2), ParallelConfig(pipeline=2), ParallelConfig(pipeline=2, virtual_pipeline=2)],
    ids=str,
)
def test_a_rank_holds_what_its_model_holds(parallel: ParallelConfig) -> None:
    for rank, counts in enumerate(in_world(2, _counts, parallel)):
        stage = rank if parallel.pipeline == 2 else 0
        assert counts == [rank_parameters(read_shape(model), parallel, stage=stage) for model in MODELS]


def _counts(parallel: ParallelConfig) -> list[int]:
    """Parameters of this rank, of each model."""
    from irpo_megatron.engine.architecture import read_architecture
    from irpo_megatron.engine.model import build_model
    from irpo_megatron.engine.parallel import parallel_world

    def count(model: dict[str, Any]) -> Iterator[int]:
        for chunk in build_model(read_architecture(model), place):
            yield from (parameter.numel() for parameter in chunk.parameters())

    with parallel_world(parallel, threads=1) as place:
        return [sum(count(model)) for model in MODELS]


@pytest.mark.parametrize(
    ("folder", "known"),
    [
        ("meta-llama/Llama-2-70b-chat-hf", "llama2-70b"),
        ("models/Meta-Llama-3-8B-Instruct", "llama3-8b"),
        ("models/Llama-3.1-70B", "llama3-70b"),
        ("models/Llama-3.2-1B-Instruct", "llama3.2-1b"),
        ("Qwen/Qwen2.5-Math-7B", "qwen2.5-7b"),
        ("Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("models/Llama-2-70billion", None),
        ("models/my-llama", None),
    ],
)
def test_a_folder_is_known_by_its_name(folder: str, known: str | None) -> None:
    assert known_name(Path(folder)) == known


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"model_type": "mamba"}, 'config.json has model_type = "mamba"'),
        ({"model_type": ["llama"]}, 'config.json has model_type = ["llama"]'),
        ({"hidden_size": None}, "config.json has hidden_size = null"),
        ({"num_hidden_layers": True}, "config.json has num_hidden_layers = true"),
        ({"num_key_value_heads": 3}, "config.json has num_key_value_heads = 3"),
        ({"hidden_size": 18}, "config.json has hidden_size = 18"),
    ],
)
def test_a_shape_that_makes_no_sense(changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(UserError) as caught:
        read_shape(SMALL | changes)
    assert caught.value.seen == seen


def test_a_llama_without_the_key_has_as_many_key_value_heads_as_heads() -> None:
    config = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    assert read_shape(config).kv_heads == 4
