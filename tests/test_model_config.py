"""What a config.json says to engines with an older transformers."""

from __future__ import annotations

import pytest

from irpo_megatron.artifacts import Json
from irpo_megatron.model_config import unsaid_in_older_names

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALING = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    ("config", "unsaid"),
    [
        ({}, {}),
        ({"rope_theta": 500000.0}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ({"rope_parameters": LLAMA3}, {"rope_theta": 500000.0, "rope_scaling": SCALING}),
        ({"rope_parameters": LLAMA3, "rope_theta": 500000.0, "rope_scaling": None}, {"rope_scaling": SCALING}),
        ({"rope_parameters": LLAMA3, "rope_theta": 500000.0, "rope_scaling": SCALING}, {}),
    ],
)
def test_what_transformers_4_would_not_find(config: Json, unsaid: Json) -> None:
    assert unsaid_in_older_names(config) == unsaid
