"""A tiny model for the generation tests, and the slow way to sample from it that the decoding loop must agree with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_model import CHARACTERS, make_llama

from irpo_megatron.generation.protocol import SampleRequest
from irpo_megatron.records import Problem, write_rows
from irpo_megatron.seeds import derive_seed

PROMPTS = ("what is it", "a", "the quick brown fox", "zz", "what is ", "jumps over", "a lazy dog of old")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with 29 tokens, a context of 128, and two tokens that end a completion: `<eos>` and `q`."""
    folder = make_llama(tmp_path_factory.mktemp("model"), seed=1, num_hidden_layers=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2 + CHARACTERS.index("q")]}))
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose characters are those of the arithmetic task's prompts."""
    folder = make_llama(tmp_path_factory.mktemp("digits"), seed=1, num_hidden_layers=2)
    alphabet = "0123456789+-*=?,;:HL"
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    names = ["<pad>", "<eos>", *alphabet, *"abcdefg"]
    assert len(names) == 2 + len(CHARACTERS)
    tokenizer["model"]["vocab"] = {name: index for index, name in enumerate(names)}
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and three held-out problems."""
    folder = tmp_path_factory.mktemp("problems")
    draw = random.Random(0)
    for split, count in (("train", 12), ("held_out", 3)):
        rows = []
        for number in range(count):
            question = "".join(f"{draw.randrange(10)}{draw.choice('+-*')}" for _ in range(draw.randrange(2, 6))) + "1"
            rows.append(Problem(id=f"{split}-{number:06d}", question=question, answer="H"))
        write_rows(folder / f"{split}.parquet", rows, Problem)
    return folder


@pytest.fixture(scope="session")
def make_requests() -> Callable[..., list[SampleRequest]]:
    """Requests for `samples` completions of each text, in order; tokens are those of `support.tiny_model`."""

    def make(texts: tuple[str, ...] = PROMPTS, *, samples: int = 5) -> list[SampleRequest]:
        return [
            SampleRequest(
                prompt_ids=tuple(2 + CHARACTERS.index(character) for character in text),
                seed=derive_seed(0, "test", text, index),
            )
            for text in texts
            for index in range(samples)
        ]

    return make
