"""A tiny Llama as a Hugging Face folder, made by transformers: what reads it is tested against the real thing."""

from __future__ import annotations

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


def make_llama(folder: Path, *, seed: int = 0, scale: float = 4.0, **changes: Any) -> Path:
    """A random Llama: 4 layers, grouped-query attention, an odd vocabulary.

    Args:
        scale: Multiplies the weights' usual spread, so that logits are far from uniform and errors show.
        changes: Fields of `LlamaConfig`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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
    } | changes
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder
