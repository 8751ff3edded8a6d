"""What of an architecture becomes a setting of Megatron-Core's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from support.places import ALONE, place

from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.model import position_fields, transformer_config
from irpo_megatron.engine.rope_config import RopeScaling
from irpo_megatron.engine.rotary import frequencies
from irpo_megatron.errors import UserError

ARCHITECTURE = Architecture(
    layers=2,
    hidden_size=32,
    heads=4,
    kv_heads=2,
    head_size=64,
    ffn_size=48,
    vocabulary=29,
    context=131072,
    rope_base=5e5,
    norm_epsilon=1e-6,
    tied_embeddings=False,
)
LLAMA_3_2 = RopeScaling(factor=32.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context=8192)


def test_biases_and_head_norms_are_switched_on_by_the_architecture() -> None:
    for bias, norm in ((False, False), (True, False), (False, True)):
        config = transformer_config(replace(ARCHITECTURE, qkv_bias=bias, qk_norm=norm), place())
        assert (config.add_qkv_bias, config.qk_layernorm) == (bias, norm)
        assert not config.add_bias_linear


# Transformer Engine's attention, whose rotary embeddings are Megatron-Core's


def _megatrons_frequencies(architecture: Architecture) -> torch.Tensor:
    fields: dict[str, Any] = position_fields(architecture, transformer_engine=True)
    assert fields.pop("position_embedding_type") == "rope"
    rotary = RotaryEmbedding(
        architecture.head_size, rotary_percent=1.0, use_cpu_initialization=True, cp_group=ALONE, **fields
    )
    found: torch.Tensor = rotary.inv_freq
    return found


@pytest.mark.parametrize("scaling", [None, LLAMA_3_2, replace(LLAMA_3_2, factor=8.0)], ids=["plain", "3.2", "3.1"])
def test_megatrons_rotary_embeddings_are_scaled_as_ours(scaling: RopeScaling | None) -> None:
    ours = frequencies(ARCHITECTURE.head_size, ARCHITECTURE.rope_base, scaling)
    torch.testing.assert_close(
        _megatrons_frequencies(replace(ARCHITECTURE, rope_scaling=scaling)), ours, atol=0, rtol=1e-6
    )


@pytest.mark.parametrize(
    "change", [{"low_frequency_factor": 2.0}, {"high_frequency_factor": 8.0}, {"original_context": 4096}], ids=str
)
def test_scaling_that_megatron_cannot_is_refused(change: dict[str, Any]) -> None:
    architecture = replace(ARCHITECTURE, rope_scaling=replace(LLAMA_3_2, **change))
    ((name, value),) = change.items()
    with pytest.raises(UserError) as caught:
        position_fields(architecture, transformer_engine=True)
    assert f"{name}={value}" in caught.value.seen
    assert f"{name}={value}" not in caught.value.rule
    assert position_fields(architecture, transformer_engine=False) == {"position_embedding_type": "none"}
