"""The shape of a model, read from a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama decoder: RMSNorm, rotary embeddings, gated SiLU feed-forward, no biases, grouped-query attention."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    vocabulary: int
    """Rows of the embedding in the checkpoint; Megatron's is padded to a multiple of TP."""
    context: int
    rope_base: float
    norm_epsilon: float
    tied_embeddings: bool

    def padded_vocabulary(self, tensor_parallel: int) -> int:
        """Rows of the embedding when it is cut over `tensor_parallel` ranks."""
        return -(-self.vocabulary // tensor_parallel) * tensor_parallel


def read_architecture(config: Json) -> Architecture:
    """The architecture that a Hugging Face configuration describes.

    Raises:
        UserError: it is not a plain Llama; a key that changes the computation and is not supported is never ignored.
    """
    # Newer configurations say it all in rope_parameters, older ones in rope_theta and rope_scaling; none is overlooked.
    ropes = [config.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
    rope_types = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes} - {"default"}
    unsupported = {
        "model_type": config.get("model_type") != "llama",
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias", False)),
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "rope_type": bool(rope_types),
    }
    for key, refused in unsupported.items():
        if refused:
            value = ", ".join(sorted(rope_types)) if key == "rope_type" else config.get(key)
            raise UserError(
                f"config.json has {key} = {value!r}",
                "supported is the plain Llama: model_type llama, hidden_act silu, no biases, default rotary embeddings",
                "choose a Llama model",
            )
    return Architecture(
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_size=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        ffn_size=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        rope_base=float(ropes[0].get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
