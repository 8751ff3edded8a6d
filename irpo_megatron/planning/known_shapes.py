"""The shapes of well-known models, for plans on a machine that has none of their files.

Each is what its config.json on the Hugging Face Hub says, under the keys that `shape` and `layout_rules` read.
"""

from __future__ import annotations

import re
from pathlib import Path

from irpo_megatron.artifacts import Json


def _config(
    family: str, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, **more: int | bool
) -> Json:
    return {
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        **more,
    }


KNOWN_CONFIGS: dict[str, Json] = {
    "llama2-7b": _config("llama", 4096, 32, 32, 32, 11008, 32000),
    "llama2-13b": _config("llama", 5120, 40, 40, 40, 13824, 32000),
    "llama2-70b": _config("llama", 8192, 80, 64, 8, 28672, 32000),
    # Llama 3, 3.1 and 3.3 have one shape a size.
    "llama3-8b": _config("llama", 4096, 32, 32, 8, 14336, 128256),
    "llama3-70b": _config("llama", 8192, 80, 64, 8, 28672, 128256),
    "llama3.2-1b": _config("llama", 2048, 16, 32, 8, 8192, 128256, head_dim=64, tie_word_embeddings=True),
    "llama3.2-3b": _config("llama", 3072, 28, 24, 8, 8192, 128256, head_dim=128, tie_word_embeddings=True),
    "mistral-7b": _config("mistral", 4096, 32, 32, 8, 14336, 32000),
    "mistral-7b-v0.3": _config("mistral", 4096, 32, 32, 8, 14336, 32768),
    "qwen2.5-0.5b": _config("qwen2", 896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True),
    "qwen2.5-1.5b": _config("qwen2", 1536, 28, 12, 2, 8960, 151936, tie_word_embeddings=True),
    "qwen2.5-7b": _config("qwen2", 3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-14b": _config("qwen2", 5120, 48, 40, 8, 13824, 152064),
    "qwen2.5-32b": _config("qwen2", 5120, 64, 40, 8, 27648, 152064),
    "qwen2.5-72b": _config("qwen2", 8192, 80, 64, 8, 29568, 152064),
    "qwen3-8b": _config("qwen3", 4096, 36, 32, 8, 12288, 151936, head_dim=128),
}

# As vendors write a version in a name, and as it is written here.
_SPELLINGS = {r"meta-?llama-": "llama-", r"llama-?(\d)": r"llama\1", r"llama3\.[13]": "llama3", r"(math|instruct)-": ""}


def known_name(folder: Path) -> str | None:
    """The known shape that a folder is named for, as `Llama-2-70b-chat-hf` is for `llama2-70b`."""
    name = folder.name.lower()
    for pattern, spelling in _SPELLINGS.items():
        name = re.sub(pattern, spelling, name)
    found = [known for known in KNOWN_CONFIGS if re.match(rf"{re.escape(known)}($|[^0-9a-z.])", name)]
    return max(found, key=len, default=None)
