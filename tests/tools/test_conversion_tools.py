"""The conversion tools as users call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.tiny_model import make_llama

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_there_and_back_verified_and_inspected(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "hf")
    there, back = tmp_path / "megatron", tmp_path / "back"
    assert tool("hf_to_megatron", folder, there, "--tensor-parallel", 2).returncode == 0
    assert tool("megatron_to_hf", there, folder, back).returncode == 0
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    outputs = json.loads((back / "manifest.json").read_text())["outputs"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= outputs.keys()

    verified = tool("verify_conversion", there, back, "--logits")
    assert f"{len(before)} tensors are equal, bit for bit\n" in verified.stdout
    assert "logits differ by at most" in verified.stdout

    narrow = tmp_path / "narrow"
    assert tool("megatron_to_hf", there, folder, narrow, "--dtype", "bf16").returncode == 0
    rounded = tool("verify_conversion", narrow, there)
    assert (rounded.returncode, rounded.stdout) == (0, f"{len(before)} tensors are equal, rounded to torch.bfloat16\n")
    assert "files are what the manifest says" in tool("inspect_checkpoint", narrow, "--checksums").stdout
    weights = narrow / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 4
    weights.write_bytes(content)
    assert "has other bytes than when it was written" in tool("inspect_checkpoint", narrow, "--checksums").stderr

    name = "model.layers.2.mlp.up_proj.weight"
    after[name][3, 4] += 0.5
    after["model.norm.weight"][0] += 1
    save_file(after, back / "model.safetensors", metadata={"format": "pt"})
    differs = tool("verify_conversion", there, back)
    assert differs.returncode == 1
    assert differs.stdout == f"{name} differs: 1 of {after[name].numel()} numbers differ, by up to 0.5\n"

    numbers = sum(tensor.numel() for tensor in before.values())
    for path, what in ((there, "Megatron distributed checkpoint"), (folder, "Hugging Face folder")):
        described = tool("inspect_checkpoint", path).stdout
        assert f"{what}: {numbers:,} numbers" in described
    assert "4 x 2 x 1" in tool("inspect_checkpoint", there).stdout


def test_a_wrong_path_is_one_message(tmp_path: Path) -> None:
    for name, arguments in {
        "hf_to_megatron": (tmp_path / "nowhere", tmp_path / "out"),
        "megatron_to_hf": (tmp_path / "nowhere", tmp_path, tmp_path / "out"),
        "verify_conversion": (tmp_path / "nowhere", tmp_path),
        "inspect_checkpoint": (tmp_path / "nowhere",),
    }.items():
        answer = tool(name, *arguments)
        assert answer.returncode == 2, name
        assert answer.stderr.startswith(f"error: no folder {tmp_path / 'nowhere'}\n"), answer.stderr
    assert not (tmp_path / "out").exists()
