"""What a decoder layer is made of, through Megatron-Core's `ModuleSpec`.

In bf16 on CUDA with Transformer Engine, its layers. Elsewhere the project's own on plain torch: Megatron-Core's local
norm refuses sequence parallelism, its local attention refuses packed sequences and context parallelism, its local
feed-forward keeps twice the activations.
"""

from __future__ import annotations

from functools import partial

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.attention import StreamAttention
from irpo_megatron.engine.feed_forward import GatedFeedForward
from irpo_megatron.engine.norm import RMSNorm


def decoder_spec(
    architecture: Architecture, config: TransformerConfig, *, transformer_engine: bool, chunk: int | None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The specification of this rank's decoder layers.

    Args:
        chunk: Which of the rank's groups of layers (virtual pipeline stage); None where it has one only.
    """
    if transformer_engine:
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=architecture.qk_norm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.mlp = GatedFeedForward
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = partial(
        StreamAttention, rope_base=architecture.rope_base, rope_scaling=architecture.rope_scaling
    )
    if architecture.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    layers = get_num_layers_to_build(config, vp_stage=chunk)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
