"""A Hugging Face folder with the weights of a random Llama in bf16, and a vocabulary of 32,000.

.venv/bin/python -m benchmarks.random_weights FOLDER --size 7b
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from irpo_megatron.conversion.sharded_files import plan_files, write_file, write_index
from irpo_megatron.conversion.table import table
from irpo_megatron.conversion.weights import tensor_shapes
from irpo_megatron.engine.architecture import read_architecture

SHAPES: dict[str, dict[str, int]] = {
    "100m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "num_attention_heads": 10},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    # Two of the eighty layers of Llama-2-70B: enough to see what memory a conversion of it takes.
    "70b-two-layers": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 2,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
_RANDOM_NUMBERS = 30_000_001  # not a multiple of any row, so that tensors are not alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="7b")
    arguments = parser.parse_args()
    make_model(arguments.folder, SHAPES[arguments.size])


def make_model(folder: Path, shape: dict[str, int]) -> None:
    """Write config.json, weights and their index."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": shape["num_attention_heads"],
        **shape,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    files = plan_files(tensor_shapes(tuple(table(read_architecture(config)))), torch.bfloat16)
    random = torch.randn(_RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    start = 0

    def content(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal start
        for name, size in shapes.items():
            numbers = torch.Size(size).numel()
            repeats = (start + numbers) // _RANDOM_NUMBERS + 1
            yield name, random.repeat(repeats)[start : start + numbers].view(size)
            start = (start + numbers) % _RANDOM_NUMBERS

    for file in files:
        write_file(folder, file, content(file.shapes))
    write_index(folder, files)


if __name__ == "__main__":
    main()
