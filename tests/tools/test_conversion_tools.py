"""The conversion tools as users call them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.tiny_model import make_llama

TOOLS = Path(__file__).parents[2] / "tools"


def test_there_and_back(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "hf")
    there, back = tmp_path / "megatron", tmp_path / "back"
    subprocess.run([sys.executable, TOOLS / "hf_to_megatron.py", folder, there], check=True)
    subprocess.run([sys.executable, TOOLS / "megatron_to_hf.py", there / "step-000000", folder, back], check=True)
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
