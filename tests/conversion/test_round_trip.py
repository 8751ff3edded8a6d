"""Hugging Face -> Megatron -> Hugging Face, through the stages' own processes: exact, and judged by logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranks import in_child
from support.stages import ONE_THREAD, import_model, run_request
from support.tiny_model import make_llama

from irpo_megatron.config import ConversionConfig
from irpo_megatron.errors import UserError
from irpo_megatron.requests import ExportRequest

SHAPES: dict[str, dict[str, Any]] = {
    "odd vocabulary, grouped": {"vocab_size": 29},
    "one key-value head, tied, own head size": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "head_dim": 12,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-6,
    },
}


def _export(output: Path, folder: Path, checkpoints: dict[str, Path]) -> Path:
    request = ExportRequest(
        output=output,
        iteration=1,
        launch=ONE_THREAD,
        conversion=ConversionConfig(),
        checkpoints=checkpoints,
        model_folder=folder,
    )
    run_request("irpo_megatron.conversion.export_stage", request)
    return output


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_comes_back_bit_for_bit(shape: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "hf", **SHAPES[shape])
    checkpoint = import_model(folder, tmp_path / "megatron")
    # The stage itself compares the logits of what it wrote, loaded by transformers, with the Megatron model's.
    back = _export(tmp_path / "back", folder, {"step-000001": checkpoint, "step-000002": checkpoint})
    original = load_file(folder / "model.safetensors")
    for name in ("step-000001", "step-000002"):
        tensors = load_file(back / name / "model.safetensors")
        assert tensors.keys() == original.keys()
        for key, tensor in original.items():
            assert torch.equal(tensors[key], tensor), key
        assert (back / name / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
        before, after = (json.loads((path / "config.json").read_text()) for path in (folder, back / name))
        assert after == before | {"dtype": "float32"}


def test_a_tensor_too_few_and_one_too_many_are_named(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    spare = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the tensors model\.layers\.1\.mlp\.up_proj\.weight"):
        import_model(folder, tmp_path / "few")
    tensors["model.layers.1.mlp.up_proj.weight"] = spare
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"besides those of its family, the tensors model\.layers\.1\.self_attn\.q_proj\.bias"
    ):
        import_model(folder, tmp_path / "many")


def test_weights_of_another_shape_than_config_json_are_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(UserError, match=r"mlp\.gate_proj\.weight .* is \(48, 32\)\n.*should be \(64, 32\)"):
        import_model(folder, tmp_path / "megatron")


def _judge(checkpoint: Path, folder: Path, wrong: Path) -> float:
    """How far the folder's logits are off; the wrong one must be refused."""
    from irpo_megatron.config import ParallelConfig
    from irpo_megatron.conversion.verify import logit_difference, require_same_logits
    from irpo_megatron.engine.parallel import parallel_world

    with parallel_world(ParallelConfig(), threads=1) as place:
        require_same_logits(checkpoint, folder, place)
        with pytest.raises(RuntimeError, match="differ from those of"):
            require_same_logits(checkpoint, wrong, place)
        return logit_difference(checkpoint, folder, place)[0]


def test_a_folder_that_computes_something_else_is_not_passed_on(tmp_path: Path) -> None:
    """The judge catches what tensor comparison cannot: weights right, configuration wrong."""
    folder = make_llama(tmp_path / "hf")
    checkpoint = import_model(folder, tmp_path / "megatron")
    # Megatron reads the true value; what is written for transformers is another one.
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 50.0
    (wrong / "config.json").write_text(json.dumps(config))
    assert in_child(_judge, checkpoint, folder, wrong) < 1e-5


def test_a_checkpoint_with_a_foreign_pickle_is_refused(tmp_path: Path) -> None:
    import pickle

    folder = make_llama(tmp_path / "hf")
    checkpoint = import_model(folder, tmp_path / "megatron")
    touched = tmp_path / "touched"

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (touched,)

    # The second names a module of the format, and a function that this module happens to import.
    through_a_dot = (
        b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x09os.system\x93"
        + b"\x8c"
        + bytes([len(f"touch {touched}")])
        + f"touch {touched}".encode()
        + b"\x85R."
    )
    for payload in (pickle.dumps(Payload()), through_a_dot):
        (checkpoint / "state" / ".metadata").write_bytes(payload)
        with pytest.raises(UserError, match="holds only the types of torch's checkpoint format"):
            _export(tmp_path / "back", folder, {".": checkpoint})
        assert not touched.exists()
    (checkpoint / "state" / ".metadata").unlink()
    with pytest.raises(UserError, match="no complete Megatron checkpoint"):
        _export(tmp_path / "again", folder, {".": checkpoint})
