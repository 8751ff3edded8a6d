"""A release of a real model, loaded as its card says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from release.reading import read_card, section
from release.released_run import checkpoint_of, commit_folder, make_run
from support.tiny_model import make_llama

from irpo_megatron.conversion import standalone
from irpo_megatron.release.release import release

PROMPT = "three plus four"
CARRIED = {"additional_chat_templates/tool_use.jinja": "{{ tools }}", "tokenizer.model.v3": "of another tokenizer"}
LEFT_BEHIND = {"tokenizer.py": "code", "additional_chat_templates/tool_use.py": "code", "tokenizer.pkl": "a pickle"}


def unwatched(_total: int) -> Callable[[int], None]:
    return lambda _count: None


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last model is a tiny Llama, as conversion writes it beside what goes along; read only."""
    root = tmp_path_factory.mktemp("run")
    run_dir = make_run(root, generation={"max_tokens": 30})
    base = make_llama(root / "base")
    for name, text in {**CARRIED, **LEFT_BEHIND}.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    there, back = root / "megatron", root / "exported"
    standalone.hf_to_megatron(base, there, tensor_parallel=1, threads=1, progress=unwatched)
    standalone.megatron_to_hf(there, base, back, dtype=None, threads=1, progress=unwatched)
    commit_folder(run_dir, 2, back)
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


def test_it_holds_what_conversion_carries_along_and_no_code(released: Path) -> None:
    found = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    assert {name: (released / name).read_text() for name in CARRIED} == CARRIED
    assert found == {
        *CARRIED,
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_cards_example_runs(run_dir: Path, released: Path) -> None:
    tokens = section(read_card(released)[1], "How to load it")
    example = next(token.content for token in tokens if token.type == "fence")
    assert '"3+4-2*5:"' in example
    finished = subprocess.run(
        [sys.executable, "-c", example.replace("3+4-2*5:", PROMPT)],
        cwd=released.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{completion(checkpoint_of(run_dir, 2), sample=False)}\n"
