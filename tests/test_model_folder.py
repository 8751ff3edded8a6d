"""A model folder is opened by its headers; each kind of damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import ARCHITECTURES, open_model_folder, require_context

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 30,
}


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def write_tensors(file: Path, *names: str) -> None:
    save_file({name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in names}, file, metadata={"format": "pt"})


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def raw_safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path)
    write_tensors(tmp_path / "model.safetensors", "model.norm.weight", "lm_head.weight")
    return tmp_path


def test_single_file(folder: Path) -> None:
    opened = open_model_folder(folder)
    assert (opened.context, opened.vocab_size) == (64, 30)
    assert opened.config["architectures"] == ["LlamaForCausalLM"]
    weights = folder / "model.safetensors"
    assert opened.weight_files == {"model.norm.weight": weights, "lm_head.weight": weights}


def test_indexed_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_tensors(folder / "a.safetensors", "x", "y")
    write_tensors(folder / "b.safetensors", "z")
    write_index(folder, {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"})
    files = open_model_folder(folder).weight_files
    assert {name: file.name for name, file in files.items()} == {
        "x": "a.safetensors",
        "y": "a.safetensors",
        "z": "b.safetensors",
    }


def test_linked_files_are_followed_as_in_the_hub_cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = tmp_path_factory.mktemp("blobs") / "0123abcd"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert "lm_head.weight" in open_model_folder(folder).weight_files


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        open_model_folder(tmp_path / "nowhere")


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_model_folder(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_malformed_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="holds one JSON object"):
        open_model_folder(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(folder: Path, architecture: str) -> None:
    write_config(folder, architectures=[architecture], model_type=ARCHITECTURES[architecture])
    assert open_model_folder(folder).config["architectures"] == [architecture]


@pytest.mark.parametrize(
    "architectures", [None, [], {}, 3, "LlamaForCausalLM", ["GemmaForCausalLM"], [[]], ["LlamaForCausalLM", "Other"]]
)
def test_other_architecture(folder: Path, architectures: object) -> None:
    write_config(folder, architectures=architectures)
    with pytest.raises(UserError, match=r"architectures = .*\n.*LlamaForCausalLM, MistralForCausalLM, "):
        open_model_folder(folder)


@pytest.mark.parametrize("model_type", [None, "mistral", ["llama"]])
def test_an_architecture_of_another_model_type(folder: Path, model_type: object) -> None:
    write_config(folder, model_type=model_type)
    with pytest.raises(UserError, match=r"model_type = .*\n.*the model_type of LlamaForCausalLM is llama"):
        open_model_folder(folder)


@pytest.mark.parametrize("key", sorted(CONFIG.keys() - {"architectures", "model_type"}))
@pytest.mark.parametrize("value", [None, 0, -1, "64", 64.0, True])
def test_sizes_are_whole_numbers(folder: Path, key: str, value: object) -> None:
    write_config(folder, **{key: value})
    with pytest.raises(UserError, match=f"{key} is a whole number above 0"):
        open_model_folder(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_model_folder(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        open_model_folder(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "sub/model.safetensors", "..", "", "a\\b"])
def test_index_reaching_outside(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    write_index(folder, {"x": name})
    with pytest.raises(UserError, match="files of its own folder"):
        open_model_folder(folder)


def test_index_naming_a_missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_index(folder, {"x": "gone.safetensors"})
    with pytest.raises(UserError, match=r"has no gone\.safetensors"):
        open_model_folder(folder)


def test_index_naming_a_missing_tensor(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_tensors(folder / "a.safetensors", "x")
    write_index(folder, {"x": "a.safetensors", "y": "a.safetensors"})
    with pytest.raises(UserError, match="lacks the tensor y"):
        open_model_folder(folder)


@pytest.mark.parametrize("weight_map", [None, {}, ["a.safetensors"]])
def test_index_without_a_map(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    with pytest.raises(UserError, match="has no weight_map"):
        open_model_folder(folder)


@pytest.mark.parametrize("change", [slice(0, 0), slice(0, 5), slice(0, 60), slice(0, -1)])
def test_truncated_file(folder: Path, change: slice) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[change])
    with pytest.raises(UserError, match="cut off or damaged"):
        open_model_folder(folder)


def test_oversized_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"has \d+ bytes, its header says \d+"):
        open_model_folder(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,  # announces a header of 2^64 bytes
        raw_safetensors(b"not json"),
        raw_safetensors(b"\xff\xfe"),
        raw_safetensors(b"[1, 2]"),
        raw_safetensors(b"[" * 100_000),
        raw_safetensors(b'{"x": 3}'),
        raw_safetensors(b'{"x": {"dtype": "F32"}}'),
        raw_safetensors(b'{"x": {"data_offsets": [0, "8"]}}', bytes(8)),
        raw_safetensors(b'{"x": {"data_offsets": [0]}}', bytes(8)),
        raw_safetensors(b'{"x": {"data_offsets": [4, 8]}}', bytes(8)),
        raw_safetensors(b'{"x": {"data_offsets": [0, 8]}, "y": {"data_offsets": [4, 8]}}', bytes(8)),
        raw_safetensors(b'{"x": {"data_offsets": [0, 8]}, "y": {"data_offsets": [8, 4]}}', bytes(4)),
    ],
)
def test_garbled_header(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cut off or damaged"):
        open_model_folder(folder)


def test_context_that_suffices(folder: Path) -> None:
    require_context({"train-000000": 40, "train-000001": 44}, 20, open_model_folder(folder))
    require_context({}, 1000, open_model_folder(folder))


def test_context_too_short(folder: Path) -> None:
    lengths = {"train-000000": 40, "train-000001": 50, "train-000002": 45}
    with pytest.raises(UserError, match=r"train-000001 has 50 tokens.*70 \(2 of 3 prompts") as caught:
        require_context(lengths, 20, open_model_folder(folder))
    assert caught.value.remedy == "set generation.max_tokens to 14 or less"


def test_prompt_longer_than_the_context(folder: Path) -> None:
    with pytest.raises(UserError, match="leave the long problems out"):
        require_context({"train-000000": 64}, 1, open_model_folder(folder))
