"""A random Llama: transformers loads it without a word, and the seed decides every byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from irpo_megatron.artifacts import file_digest
from irpo_megatron.base_model.stage import run
from irpo_megatron.config import ModelConfig, RandomModel, RandomTokenizer
from irpo_megatron.config_file import load_config
from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import open_model_folder
from irpo_megatron.records import Problem, write_rows
from irpo_megatron.requests import BaseModelRequest
from irpo_megatron.tokenizer import Tokenizer

CHARACTERS = RandomTokenizer(kind="characters")
DEMO = RandomModel(tokenizer=CHARACTERS)
GROUPED = {"hidden_size": 48, "layers": 2, "heads": 6, "kv_heads": 2, "ffn_size": 40, "context": 32}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problems")
    rows = [
        Problem(id="train-000000", question="What is 2 + 2?", answer="4", solution="2 + 2 = 4\nFinal answer: 4"),
        Problem(id="train-000001", question="What is 3 + 3?", answer="6"),
    ]
    write_rows(folder / "train.parquet", rows, Problem)
    return folder


def make(output: Path, problems: Path, shape: RandomModel = DEMO, *, task: str = "arithmetic", seed: int = 0) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    request = BaseModelRequest(
        output=output, iteration=0, seed=seed, task=task, model=ModelConfig(random=shape), problems=problems
    )
    run(request)
    return output


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        # 24 tokens; the prototype of the demo task had 26 and so 163,520 parameters.
        (DEMO, 2 * 24 * 64 + 3 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64),
        (
            RandomModel(tokenizer=CHARACTERS, **GROUPED),
            2 * 24 * 48 + 2 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 40 + 2 * 48) + 48,
        ),
    ],
    ids=["demo", "grouped-query"],
)
def test_transformers_loads_it_whole(tmp_path: Path, problems: Path, shape: RandomModel, parameters: int) -> None:
    folder = make(tmp_path, problems, shape)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.dtype == torch.float32
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    tokens = AutoTokenizer.from_pretrained(folder)("3+4:", return_tensors="pt")
    generated = model.generate(**tokens, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > tokens.input_ids.shape[1]
    # As good as uniform over its tokens: nothing in it is far too large or dead.
    log_probs = torch.log_softmax(model(tokens.input_ids).logits, dim=-1)
    torch.testing.assert_close(log_probs, torch.full_like(log_probs, -math.log(24)), rtol=0, atol=0.5)


def test_our_own_readers_open_it(tmp_path: Path, problems: Path) -> None:
    folder = open_model_folder(make(tmp_path, problems))
    assert (folder.context, folder.vocab_size) == (256, Tokenizer(tmp_path).vocabulary_size)
    assert len(folder.weight_files) == 3 + 3 * 9


def test_weights_have_the_spread_they_should(tmp_path: Path, problems: Path) -> None:
    tensors = load_file(make(tmp_path, problems) / "model.safetensors")
    for name, tensor in tensors.items():
        if "norm" in name:
            assert (tensor == 1).all()
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = 0.02 / math.sqrt(6) if residual else 0.02
        assert np.std(tensor) == pytest.approx(expected, rel=0.1), name
        assert abs(np.mean(tensor)) < 5 * expected / math.sqrt(tensor.size), name
    flat = [tensor.ravel()[:64].tobytes() for name, tensor in tensors.items() if "norm" not in name]
    assert len(set(flat)) == len(flat), "no two tensors share their random numbers"


def test_the_seed_decides_every_byte(tmp_path: Path, problems: Path) -> None:
    first, again = make(tmp_path / "a", problems), make(tmp_path / "b", problems)
    other = make(tmp_path / "c", problems, seed=1)
    assert digests(first) == digests(again)
    changed = {name for name, digest in digests(first).items() if digests(other)[name] != digest}
    assert changed == {"model.safetensors"}


def test_bpe_learns_from_prompts_and_gold_completions(tmp_path: Path, problems: Path) -> None:
    shape = RandomModel(tokenizer=RandomTokenizer(kind="bpe", vocabulary=320), **GROUPED)
    folder = make(tmp_path, problems, shape, task="gsm8k")
    tokenizer = Tokenizer(folder)
    assert tokenizer.vocabulary_size == 320
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 320
    assert len(tokenizer.encode_completion(" answer")) < len(" answer")
    assert not any(AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[1].values())


def test_only_arithmetic_has_an_alphabet(tmp_path: Path, problems: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.kind = characters, task = gsm8k"):
        make(tmp_path, problems, task="gsm8k")


@pytest.mark.parametrize("key", ["hidden_size", "layers", "heads", "kv_heads", "ffn_size", "context"])
def test_sizes_of_nothing_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        RandomModel(tokenizer=CHARACTERS, **{key: 0})


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 65}, {"hidden_size": 68}, {"hidden_size": 12}, {"heads": 6, "hidden_size": 48}]
)
def test_shapes_that_do_not_divide_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    """The configuration refuses them, before this stage is reached."""
    shape: dict[str, Any] = {"tokenizer": {"kind": "characters"}, **changes}
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "x",
                "task": "arithmetic",
                "model": {"random": shape},
                "data": {"train": "generate:train:9", "test": "generate:test:9"},
            }
        )
    )
    with pytest.raises(UserError, match=r"model\.random has hidden_size"):
        load_config(path)
