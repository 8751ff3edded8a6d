"""A release of a real model, loaded as its card says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from release.reading import read_card, section
from release.released_run import checkpoint_of, commit_folder, make_run
from support.tiny_model import make_llama

from irpo_megatron.release.release import release

PROMPT = "three plus four"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last model is a tiny Llama; read only."""
    root = tmp_path_factory.mktemp("run")
    run_dir = make_run(root, generation={"max_tokens": 30})
    commit_folder(run_dir, 2, make_llama(root / "tiny"))
    return run_dir


@pytest.fixture(scope="module")
def released(run_dir: Path) -> Path:
    return release(run_dir, run_dir.parent / "model").folder


def completion(folder: Path, *, sample: bool) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    ids = model.generate(prompt, do_sample=sample, max_new_tokens=30)[0, prompt.shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_it_generates_what_the_runs_checkpoint_does(run_dir: Path, released: Path) -> None:
    for sample in (False, True):
        text = completion(released, sample=sample)
        assert len(set(text)) > 2
        assert text == completion(checkpoint_of(run_dir, 2), sample=sample)


def test_the_cards_example_runs(run_dir: Path, released: Path) -> None:
    tokens = section(read_card(released)[1], "How to load it")
    example = next(token.content for token in tokens if token.type == "fence")
    assert '"3+4-2*5:"' in example
    finished = subprocess.run(
        [sys.executable, "-c", example.replace("3+4-2*5:", PROMPT)],
        cwd=released.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{completion(checkpoint_of(run_dir, 2), sample=False)}\n"
