"""Which files belong to a model: those of known names, wherever a stranger's folder comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpo_megatron.model_files import carried_along, is_model_file

WRITTEN = (
    "config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
)
CARRIED = (
    "added_tokens.json",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "vocab.json",
)
NEITHER = (
    "tokenizer.py",
    "tokenizer_custom.py",
    "tokenizer.model.v3.py",
    "tokenizer.pkl",
    "tokenizer.json.bak",
    "tokenizer",
    "pytorch_model.bin",
    "model.safetensors.bin",
    "modeling_llama.py",
    "chat_template.py",
    "additional_chat_templates/run.py",
    "additional_chat_templates/.jinja",
    "additional_chat_templates/deeper/tool_use.jinja",
    "elsewhere/tokenizer.json",
    "manifest.json",
    "README.md",
)
ESCAPES = (
    "../config.json",
    "/config.json",
    "./config.json",
    "additional_chat_templates/../../tokenizer.jinja",
    "additional_chat_templates\\..\\tokenizer.jinja",
    "config.json\n",
    "model-١-of-٢.safetensors",
    "",
)


@pytest.mark.parametrize("name", WRITTEN + CARRIED)
def test_what_conversion_writes_belongs_to_a_model(name: str) -> None:
    assert is_model_file(name)


@pytest.mark.parametrize("name", NEITHER + ESCAPES)
def test_nothing_else_does(name: str) -> None:
    assert not is_model_file(name)


def test_what_goes_along_with_a_model(tmp_path: Path) -> None:
    for name in WRITTEN + CARRIED + NEITHER:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "tokenizer_files.json").mkdir()
    assert carried_along(tmp_path) == list(CARRIED)
