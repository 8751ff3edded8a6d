"""What of a config.json is understood, and that the rest is refused rather than ignored."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from irpo_megatron.engine.architecture import FAMILIES, read_architecture
from irpo_megatron.errors import UserError
from irpo_megatron.model_config import DEFAULTS
from irpo_megatron.model_folder import ARCHITECTURES

# Published config.json files, without what says nothing about the computation.
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
LLAMA_3_2_1B: dict[str, Any] = LLAMA_2_70B | {
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
MISTRAL_7B_V3: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
QWEN_2_5_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


# What is understood


def test_llama_2_70b() -> None:
    architecture = read_architecture(LLAMA_2_70B)
    assert (architecture.layers, architecture.hidden_size, architecture.ffn_size) == (80, 8192, 28672)
    assert (architecture.heads, architecture.kv_heads, architecture.head_size) == (64, 8, 128)
    assert (architecture.rope_base, architecture.norm_epsilon, architecture.context) == (10000.0, 1e-5, 4096)
    assert architecture.rope_scaling is None
    assert not any((architecture.tied_embeddings, architecture.qkv_bias, architecture.qk_norm))


def test_llama_3_2() -> None:
    architecture = read_architecture(LLAMA_3_2_1B)
    assert (architecture.heads, architecture.kv_heads, architecture.head_size) == (32, 8, 64)
    assert architecture.rope_base == 500000.0
    scaling = architecture.rope_scaling
    assert scaling is not None
    assert (scaling.factor, scaling.original_context) == (32.0, 8192)
    assert (scaling.low_frequency_factor, scaling.high_frequency_factor) == (1.0, 4.0)
    assert architecture.tied_embeddings


def test_mistral_qwen_2_5_and_qwen_3() -> None:
    mistral, qwen2, qwen3 = map(read_architecture, (MISTRAL_7B_V3, QWEN_2_5_7B, QWEN_3_0_6B))
    assert [(one.qkv_bias, one.qk_norm) for one in (mistral, qwen2, qwen3)] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert [(one.heads, one.kv_heads, one.head_size) for one in (mistral, qwen2, qwen3)] == [
        (32, 8, 128),
        (28, 4, 128),
        (16, 8, 128),
    ]
    assert [one.rope_base for one in (mistral, qwen2, qwen3)] == [1e6] * 3
    assert [one.tied_embeddings for one in (mistral, qwen2, qwen3)] == [False, False, True]


def test_folders_and_the_engine_know_the_same_families() -> None:
    assert set(ARCHITECTURES.values()) == set(FAMILIES) == set(DEFAULTS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_missing_key_means_what_it_means_to_transformers(model_type: str) -> None:
    theirs = CONFIG_MAPPING[model_type]()
    for key, value in DEFAULTS[model_type].items():
        assert getattr(theirs, key) == value, key
    needed = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "vocab_size")
    # Where the window is a number by default, the context is held within it.
    config = {key: getattr(theirs, key) for key in needed} | {"max_position_embeddings": 4096}
    ours = read_architecture({**config, "model_type": model_type, "num_attention_heads": theirs.num_attention_heads})
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_size == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.norm_epsilon == theirs.rms_norm_eps
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.rope_base == 10000.0
    if hasattr(theirs, "rope_parameters"):  # since transformers 5
        assert ours.rope_base == theirs.rope_parameters["rope_theta"]
    assert ours.rope_scaling is None


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_key_value_heads_are_as_many_as_there_are_heads(model_type: str) -> None:
    config = LLAMA_2_70B | {"model_type": model_type, "sliding_window": None}
    assert read_architecture(config | {"num_key_value_heads": None}).kv_heads == 64
    assert read_architecture(without(LLAMA_2_70B, "num_key_value_heads")).kv_heads == 64


SCALING = LLAMA_3_2_1B["rope_scaling"]


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5, "rope_scaling": SCALING},
        {"rope_scaling": {"type" if key == "rope_type" else key: value for key, value in SCALING.items()}},
        {"rope_scaling": SCALING | {"type": "llama3"}},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": SCALING | {"rope_theta": 5e5}},
        {"rope_scaling": None, "rope_parameters": SCALING | {"rope_theta": 5e5}},
        {"rope_parameters": SCALING | {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
    ],
)
def test_rotary_embeddings_are_found_where_either_version_of_transformers_writes_them(changes: dict[str, Any]) -> None:
    assert read_architecture(LLAMA_3_2_1B | changes) == read_architecture(LLAMA_3_2_1B)


@pytest.mark.parametrize(
    ("changes", "rope_base"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 1000000}, 1e6),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_parameters": {}, "rope_scaling": {"type": "default"}}, 1e4),
    ],
)
def test_the_rotary_base(changes: dict[str, Any], rope_base: float) -> None:
    assert read_architecture(LLAMA_2_70B | changes).rope_base == rope_base


def test_a_window_that_no_sequence_reaches_changes_nothing() -> None:
    assert read_architecture(MISTRAL_7B_V3 | {"sliding_window": 32768}) == read_architecture(MISTRAL_7B_V3)
    # Qwen's is in force with another key only.
    assert read_architecture(QWEN_2_5_7B | {"sliding_window": 4096}) == read_architecture(QWEN_2_5_7B)
    assert read_architecture(QWEN_3_0_6B | {"layer_types": ["full_attention"] * 28}) == read_architecture(QWEN_3_0_6B)


@pytest.mark.parametrize(("tensor", "padded"), [(1, 29), (2, 30), (4, 32), (8, 32)])
def test_the_vocabulary_is_padded_to_a_multiple_of_tp(tensor: int, padded: int) -> None:
    assert read_architecture(LLAMA_2_70B | {"vocab_size": 29}).padded_vocabulary(tensor) == padded


# What is refused


def assert_refused(config: dict[str, Any], seen: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        read_architecture(config)
    assert f"config.json has {seen}" in caught.value.seen
    assert rule in caught.value.rule
    assert caught.value.remedy


@pytest.mark.parametrize("model_type", ["gemma", "qwen3_moe", "mixtral", None, ["llama"], 3])
def test_other_families(model_type: object) -> None:
    assert_refused(LLAMA_2_70B | {"model_type": model_type}, "model_type = ", "llama, mistral, qwen2, qwen3")


@pytest.mark.parametrize("config", [LLAMA_2_70B, MISTRAL_7B_V3, QWEN_2_5_7B, QWEN_3_0_6B], ids=list(FAMILIES))
@pytest.mark.parametrize(
    ("changes", "seen", "rule"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu"', "silu"),
        ({"hidden_act": None}, "hidden_act = null", "silu"),
        ({"attention_bias": True}, "attention_bias = true", "no biases"),
        ({"mlp_bias": True}, "mlp_bias = true", "no biases"),
        ({"use_sliding_window": True}, "use_sliding_window = true", "every token"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = ", "full_attention"),
        ({"layer_types": "sliding_attention"}, "layer_types = ", "full_attention"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config = ", "alike"),
    ],
)
def test_what_would_change_the_computation(
    config: dict[str, Any], changes: dict[str, Any], seen: str, rule: str
) -> None:
    assert_refused(config | changes, seen, rule)


def test_a_window_that_a_sequence_reaches() -> None:
    seen = "sliding_window = 4096"
    assert_refused(MISTRAL_7B_V3 | {"sliding_window": 4096}, seen, "max_position_embeddings = 32768")
    # Without the key, transformers takes this number.
    assert_refused(without(MISTRAL_7B_V3, "sliding_window"), seen, "max_position_embeddings = 32768")
    assert read_architecture(without(MISTRAL_7B_V3, "sliding_window") | {"max_position_embeddings": 4096})


@pytest.mark.parametrize(
    ("changes", "seen", "rule"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_type = "linear"', "default and llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_type = "dynamic"', "default and llama3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type = "yarn"', "default and llama3"),
        ({"rope_parameters": {"rope_type": "longrope"}}, 'rope_type = "longrope"', "default and llama3"),
        ({"rope_parameters": {"rope_type": ["llama3"]}}, "rope_type = [", "default and llama3"),
        ({"rope_scaling": "llama3"}, 'rope_scaling = "llama3"', "an object or null"),
        ({"rope_parameters": [1]}, "rope_parameters = [1]", "an object or null"),
        # For each kind of layer its own.
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "full_attention = ",
            "of type default have",
        ),
        ({"rope_parameters": {"factor": 2.0}}, "factor = 2.0", "of type default have"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5", "every component"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5", "every component"),
        ({"rope_theta": 0}, "rope_theta = 0", "a number above 0"),
        ({"rope_theta": "10000"}, 'rope_theta = "10000"', "a number above 0"),
        ({"rope_theta": True}, "rope_theta = true", "a number above 0"),
        # What one place says, another denies: neither is overlooked.
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            'rope_type = "default", and rope_type = "yarn"',
            "contradict",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
            "rope_theta = 10000.0, and rope_theta = 1000000.0",
            "contradict",
        ),
    ],
)
def test_other_rotary_embeddings(changes: dict[str, Any], seen: str, rule: str) -> None:
    assert_refused(without(LLAMA_2_70B, "rope_scaling") | changes, seen, rule)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("factor", None, "a number above 0"),
        ("factor", 0.5, "1 or more"),
        ("factor", "8", "a number above 0"),
        ("low_freq_factor", None, "a number above 0"),
        ("low_freq_factor", 4.0, "below high_freq_factor"),
        ("high_freq_factor", math.nan, "a number above 0"),
        ("high_freq_factor", math.inf, "a number above 0"),
        ("original_max_position_embeddings", None, "a whole number above 0"),
        ("original_max_position_embeddings", 8192.0, "a whole number above 0"),
        ("attention_factor", 1.0, "of type llama3 have"),
    ],
)
def test_llama3_scaling_that_is_not_sane(key: str, value: object, rule: str) -> None:
    assert_refused(LLAMA_3_2_1B | {"rope_scaling": SCALING | {key: value}}, f"{key} = ", rule)


def test_the_original_context_in_another_place_is_not_overlooked() -> None:
    """transformers 5 gives it priority."""
    seen = "original_max_position_embeddings = 4096, and original_max_position_embeddings = 8192"
    assert_refused(LLAMA_3_2_1B | {"original_max_position_embeddings": 4096}, seen, "contradict")


SIZES = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")


@pytest.mark.parametrize("key", [*SIZES, "vocab_size", "head_dim", "num_key_value_heads"])
@pytest.mark.parametrize("value", [0, -1, "64", 64.0, True, [64]])
def test_sizes_that_are_no_whole_numbers(key: str, value: object) -> None:
    assert_refused(LLAMA_2_70B | {key: value}, f"{key} = ", f"{key} is a whole number above 0")


@pytest.mark.parametrize("key", [*SIZES, "vocab_size"])
def test_sizes_that_are_missing(key: str) -> None:
    assert_refused(without(LLAMA_2_70B, key), f"{key} = null", f"{key} is a whole number above 0")


@pytest.mark.parametrize(
    ("changes", "seen", "rule"),
    [
        ({"num_key_value_heads": 7}, "num_key_value_heads = 7", "divides num_attention_heads = 64"),
        ({"hidden_size": 8200}, "hidden_size = 8200", "num_attention_heads = 64 divides hidden_size"),
        ({"hidden_size": 64 * 63}, "hidden_size / num_attention_heads = 63", "even"),
        ({"head_dim": 63}, "head_dim = 63", "even"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps = 0.0", "a number above 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps = null", "a number above 0"),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps = "1e-5"', "a number above 0"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings = "false"', "true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1", "true or false"),
        ({"attention_bias": 0}, "attention_bias = 0", "true or false"),
    ],
)
def test_values_that_are_not_sane(changes: dict[str, Any], seen: str, rule: str) -> None:
    assert_refused(LLAMA_2_70B | changes, seen, rule)
