"""What of a config.json is understood, and that the rest is refused rather than ignored."""

from __future__ import annotations

from typing import Any

import pytest

from irpo_megatron.engine.architecture import read_architecture
from irpo_megatron.errors import UserError

# The fields of Llama-2-70B's published config.json.
LLAMA_2_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def test_llama_2_70b() -> None:
    architecture = read_architecture(LLAMA_2_70B)
    assert (architecture.layers, architecture.hidden_size, architecture.ffn_size) == (80, 8192, 28672)
    assert (architecture.heads, architecture.kv_heads, architecture.head_size) == (64, 8, 128)
    assert (architecture.rope_base, architecture.norm_epsilon, architecture.context) == (10000.0, 1e-5, 4096)
    assert not architecture.tied_embeddings


@pytest.mark.parametrize(
    ("changes", "rope_base"),
    [({"rope_theta": 5e5}, 5e5), ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6)],
)
def test_the_rotary_base_is_found_where_either_version_of_transformers_writes_it(
    changes: dict[str, Any], rope_base: float
) -> None:
    assert read_architecture(LLAMA_2_70B | changes).rope_base == rope_base


def test_old_configurations_without_key_value_heads_have_one_for_each_head() -> None:
    config = {key: value for key, value in LLAMA_2_70B.items() if key != "num_key_value_heads"}
    assert read_architecture(config).kv_heads == 64


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type = 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        # One key says default, the other does not: neither is overlooked.
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type = 'yarn'",
        ),
    ],
)
def test_what_would_change_the_computation_is_refused(changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(UserError) as caught:
        read_architecture(LLAMA_2_70B | changes)
    assert seen in caught.value.seen
    assert "plain Llama" in caught.value.rule


@pytest.mark.parametrize(("tensor", "padded"), [(1, 29), (2, 30), (4, 32), (8, 32)])
def test_the_vocabulary_is_padded_to_a_multiple_of_tp(tensor: int, padded: int) -> None:
    assert read_architecture(LLAMA_2_70B | {"vocab_size": 29}).padded_vocabulary(tensor) == padded
