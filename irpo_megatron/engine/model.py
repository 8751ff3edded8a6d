"""Megatron-Core's `GPTModel` for an architecture at a layout."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.layers import layer_spec


def transformer_config(architecture: Architecture) -> TransformerConfig:
    """Megatron's configuration of an architecture at the layout of the current process groups."""
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
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_dtype=torch.float32,
        # Micro-batches are padded to their own longest sequence, so pipeline stages must tell each other shapes.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # no experts here, but the line above is refused with the default
        # Losses here are sums that already carry the global denominator: this mode makes Megatron add the gradients of
        # micro-batches and data-parallel ranks instead of averaging them (see training/step.py).
        calculate_per_token_loss=True,
        # Weights are always loaded, but Megatron marks them as tensor-parallel only while it initialises them; without
        # the mark, the gradient norm counts the shards of one rank alone.
        perform_initialization=True,
        use_cpu_initialization=not torch.cuda.is_available(),
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )


def build_model(architecture: Architecture) -> GPTModel:
    """This rank's part of the model, its weights not yet loaded."""
    config = transformer_config(architecture)
    model = GPTModel(
        config=config,
        transformer_layer_spec=layer_spec(),
        vocab_size=architecture.padded_vocabulary(config.tensor_model_parallel_size),
        max_sequence_length=architecture.context,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=architecture.rope_base,
    )
    return model.cuda()
