"""Megatron-Core's `GPTModel` for an architecture at a layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from megatron.core import parallel_state
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.layers import decoder_spec
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Policy
from irpo_megatron.engine.precision import transformer_fields
from irpo_megatron.engine.rope_config import RopeScaling
from irpo_megatron.errors import UserError
from irpo_megatron.nvidia_packages import apex_provides_fused_weight_gradients

Recompute = Literal["none", "selective", "full"]

# In Megatron-Core's fields; selective is core attention: rotated and, under context parallelism, gathered heads.
_RECOMPUTE: dict[Recompute, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}

# Constants in Megatron-Core's rotary embeddings, but for the factor: those of every Llama 3.1, 3.2 and 3.3.
_MEGATRONS_SCALING = RopeScaling(factor=8, low_frequency_factor=1, high_frequency_factor=4, original_context=8192)


def transformer_config(architecture: Architecture, place: Place, recompute: Recompute = "none") -> TransformerConfig:
    """Megatron's configuration of an architecture at a layout."""
    layout = place.layout
    return TransformerConfig(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        num_attention_heads=architecture.heads,
        num_query_groups=architecture.kv_heads,
        kv_channels=architecture.head_size,
        ffn_hidden_size=architecture.ffn_size,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        # Makes Megatron sum the gradients of these norms over the tensor-parallel ranks: each rank sees its own heads.
        qk_layernorm=architecture.qk_norm,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=layout.tensor,
        sequence_parallel=layout.sequence,
        context_parallel_size=layout.context,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        # An interleaved pipeline of two stages sends both ways between the same two ranks. In one batch those messages
        # would be taken for each other; one at a time they cannot.
        overlap_p2p_comm=layout.virtual_pipeline > 1,
        batch_p2p_comm=layout.virtual_pipeline == 1,
        # Streams differ in length, so pipeline stages must tell each other shapes.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # no experts here, but the line above is refused with the default
        # Losses here are sums that already carry the global denominator: this mode makes Megatron add the gradients of
        # micro-batches and data-parallel ranks instead of averaging them (see `optimizer.sum_gradients`).
        calculate_per_token_loss=True,
        # Weights are always loaded, but Megatron marks them as tensor-parallel only while it initialises them; without
        # the mark, the gradient norm counts the shards of one rank alone.
        perform_initialization=True,
        use_cpu_initialization=place.device.type == "cpu",
        bias_dropout_fusion=place.transformer_engine,
        bias_activation_fusion=place.transformer_engine,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=place.device.type == "cuda" and apex_provides_fused_weight_gradients(),
        persist_layer_norm=False,
        **transformer_fields(place.precision),
        **_RECOMPUTE[recompute],
    )


def build_model(architecture: Architecture, place: Place, *, recompute: Recompute = "none") -> list[Policy]:
    """This rank's groups of layers (one, unless the pipeline is interleaved), their weights not yet loaded."""
    config = transformer_config(architecture, place, recompute)
    return [_build_chunk(architecture, config, place, chunk) for chunk in range(place.layout.virtual_pipeline)]


def as_computed(chunk: Policy) -> torch.nn.Module:
    """The module to call: in bf16, one that converts between the pipeline's ends and the model's numbers."""
    return Float16Module(chunk.config, chunk) if chunk.config.bf16 else chunk


def _build_chunk(architecture: Architecture, config: TransformerConfig, place: Place, chunk: int) -> Policy:
    stage = chunk if place.layout.virtual_pipeline > 1 else None
    model = Policy(
        config=config,
        transformer_layer_spec=decoder_spec(
            architecture, config, transformer_engine=place.transformer_engine, chunk=stage
        ),
        vocab_size=architecture.padded_vocabulary(config.tensor_model_parallel_size),
        max_sequence_length=architecture.context,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        parallel_output=True,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        vp_stage=stage,
        **position_fields(architecture, transformer_engine=place.transformer_engine),
    )
    return cast(Policy, model.cuda())


def position_fields(architecture: Architecture, *, transformer_engine: bool) -> dict[str, Any]:
    """`GPTModel`'s rotary embeddings, for Transformer Engine's attention.

    Raises:
        UserError: they are scaled in a way that Megatron-Core cannot.
    """
    if not transformer_engine:
        # The project's own attention rotates by itself: positions under a shared prompt do not simply count up.
        return {"position_embedding_type": "none"}
    fields = {"position_embedding_type": "rope", "rotary_base": architecture.rope_base}
    scaling = architecture.rope_scaling
    if scaling is None:
        return fields
    known = replace(_MEGATRONS_SCALING, factor=scaling.factor)
    if scaling != known:
        raise UserError(
            f"config.json scales rotary embeddings with {scaling}",
            f"Megatron-Core, whose rotary embeddings Transformer Engine's attention takes, knows {known} only",
            "set precision.dtype=fp32, or uninstall Transformer Engine: the attention in use then scales freely",
        )
    return {**fields, "rope_scaling": True, "rope_scaling_factor": scaling.factor}
