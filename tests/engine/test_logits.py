"""Logits of rows that lie in one stream, against transformers on each row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.float64_reference import load_float64
from support.ranks import in_child
from support.tiny_model import FAMILIES, make_model

from irpo_megatron.config import ParallelConfig
from irpo_megatron.conversion.into_megatron import load_model
from irpo_megatron.conversion.weights import Weights
from irpo_megatron.engine.architecture import read_architecture
from irpo_megatron.engine.logits import logits
from irpo_megatron.engine.model import build_model
from irpo_megatron.engine.parallel import parallel_world
from irpo_megatron.model_folder import open_model_folder

# Of different lengths, one of a single token, one a prefix of another, with token 0, which also fills streams up.
ROWS = [[5, 0, 7, 7, 2, 28, 3], [4], [5, 0, 7], [0, 0], [9] * 40]


def _logits(folder: Path) -> torch.Tensor:
    found = open_model_folder(folder)
    architecture = read_architecture(found.config)
    with parallel_world(ParallelConfig(), threads=1) as place:
        (model,) = build_model(architecture, place)
        load_model([model], Weights(found, architecture))
        values = logits(model, ROWS, place)
        assert torch.is_grad_enabled()
        return values.cpu()


def _assert_same(folder: Path) -> None:
    model: Any = load_float64(folder)
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
    computed = in_child(_logits, folder)
    assert computed.dtype == torch.float32
    assert computed.shape == expected.shape == (sum(map(len, ROWS)), 29)
    assert expected.std() > 0.5, "far from uniform, so that errors show"
    torch.testing.assert_close(computed.double(), expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_in_one_stream(family: str, tmp_path: Path) -> None:
    _assert_same(make_model(tmp_path, family, scale=10.0))


@pytest.mark.parametrize(
    "changes",
    [{"tie_word_embeddings": True}, {"num_key_value_heads": 4, "rope_theta": 5e5, "head_dim": 12}],
    ids=["tied", "another rotary base, wide heads"],
)
def test_what_config_json_may_say_of_any_family(changes: dict[str, Any], tmp_path: Path) -> None:
    _assert_same(make_model(tmp_path, "llama", scale=10.0, **changes))
