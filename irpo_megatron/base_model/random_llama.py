"""The weights and the configuration of a randomly initialised Llama, as transformers' `LlamaForCausalLM` reads them.

Weights are normal with standard deviation 0.02; the two projections that write to the residual stream are scaled down
by sqrt(2 x layers), so that the stream's variance does not grow with depth (GPT-2: Radford et al. 2019, section 2.3).

Shapes: V token ids, D width of the residual stream, F width of the feed-forward layer, H heads and G key-value heads of
size D / H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from irpo_megatron.artifacts import Json, write_json
from irpo_megatron.base_model.tokenizers import BOS_ID, EOS_ID, PAD_ID
from irpo_megatron.config import RandomModel
from irpo_megatron.model_folder import CONFIG, WEIGHTS
from irpo_megatron.seeds import derive_seed

STANDARD_DEVIATION = 0.02
ROPE_THETA = 10000.0

_SPECIAL_TOKENS = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}


def write_random_llama(folder: Path, shape: RandomModel, *, vocabulary: int, seed: int) -> None:
    """Write config.json, generation_config.json and model.safetensors: the same bytes for the same arguments."""
    write_json(folder / CONFIG, llama_config(shape, vocabulary))
    write_json(folder / "generation_config.json", dict(_SPECIAL_TOKENS))
    tensors = {name: _draw(name, size, shape, seed) for name, size in tensor_shapes(shape, vocabulary)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def llama_config(shape: RandomModel, vocabulary: int) -> Json:
    """config.json; names that changed with transformers 5 stand in it twice."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": STANDARD_DEVIATION,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
        **_SPECIAL_TOKENS,
    }


def tensor_shapes(shape: RandomModel, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor; a linear layer is [output, input]."""
    width, ffn = shape.hidden_size, shape.ffn_size
    kv_width = shape.kv_heads * (width // shape.heads)
    yield "model.embed_tokens.weight", (vocabulary, width)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (width,)
        yield f"{prefix}.self_attn.q_proj.weight", (width, width)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_width, width)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_width, width)
        yield f"{prefix}.self_attn.o_proj.weight", (width, width)
        yield f"{prefix}.post_attention_layernorm.weight", (width,)
        yield f"{prefix}.mlp.gate_proj.weight", (ffn, width)
        yield f"{prefix}.mlp.up_proj.weight", (ffn, width)
        yield f"{prefix}.mlp.down_proj.weight", (width, ffn)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)


def _draw(name: str, size: tuple[int, ...], shape: RandomModel, seed: int) -> NDArray[np.float32]:
    """One tensor; each has a stream of its own, so that it does not depend on the others."""
    if len(size) == 1:  # the norms
        return np.ones(size, dtype=np.float32)
    deviation = STANDARD_DEVIATION
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2 * shape.layers)
    generator = np.random.Generator(np.random.Philox(key=derive_seed(seed, "base_model", name)))
    return (generator.standard_normal(size) * deviation).astype(np.float32)
