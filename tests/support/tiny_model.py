"""Tiny models as Hugging Face folders, made by transformers: what reads it is tested against the real thing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

CHARACTERS = "abcdefghijklmnopqrstuvwxyz "


def make_tokenizer(folder: Path) -> None:
    """One token a character, after `<pad>`=0 and `<eos>`=1."""
    vocabulary = {"<pad>": 0, "<eos>": 1} | {character: index for index, character in enumerate(CHARACTERS, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "pad_token": "<pad>"}))


# One way of each family to be unlike the others, and all unlike what a default would be.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    # Heads wider than hidden size / heads; of their frequencies one is kept, one between, and six are divided.
    "llama3": {
        "head_dim": 16,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": True,
    },
    "mistral": {"head_dim": 12, "num_key_value_heads": 1, "rope_theta": 1e6, "sliding_window": None},
    "qwen2": {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 12, "rope_theta": 1e6, "rms_norm_eps": 1e-6},
}


def make_model(folder: Path, family: str, *, seed: int = 0, scale: float = 4.0, **changes: Any) -> Path:
    """A random model: 4 layers, grouped-query attention, an odd vocabulary, biases that are not 0.

    Args:
        family: One of `FAMILIES`.
        scale: Multiplies the weights' usual spread, so that logits are far from uniform and errors show.
        changes: Fields of the family's configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": 2 + len(CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    # A copy: transformers writes into what it is given.
    fields |= copy.deepcopy(FAMILIES[family]) | changes
    config = AutoConfig.for_model("llama" if family == "llama3" else family, **fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
            else:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_llama(folder: Path, *, seed: int = 0, scale: float = 4.0, **changes: Any) -> Path:
    """As `make_model`, a plain Llama."""
    return make_model(folder, "llama", seed=seed, scale=scale, **changes)
