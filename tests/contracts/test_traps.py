"""Traps of the components, each held shut by a test."""

from __future__ import annotations

import subprocess
import sys

import torch
from support.places import place
from support.ranks import on_ranks


def _total_of_a_transposed_tensor() -> list[list[float]]:
    rank = torch.distributed.get_rank()
    values = torch.arange(6.0).view(2, 3).T + 10 * rank
    assert not values.is_contiguous()
    return place(rank=rank, data=2, data_rank=rank).total(values).tolist()


def test_gloo_is_never_handed_a_tensor_that_is_not_contiguous() -> None:
    """Gloo moves the wrong elements of such a tensor in some collectives, without an error."""
    expected = [[10.0, 16.0], [12.0, 18.0], [14.0, 20.0]]
    assert on_ranks(2, _total_of_a_transposed_tensor) == [expected, expected]


def test_the_main_module_of_every_stage_is_light_and_guarded() -> None:
    """Megatron-Core's checkpoint writer spawns a process that imports `__main__` again: no engine, no second stage."""
    script = """
import sys
import irpo_megatron.process
heavy = {"torch", "megatron", "transformers", "numpy", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_pickle_is_loaded_without_a_guard_and_no_remote_code_is_trusted() -> None:
    """Searched in the source, so that a new one does not slip in."""
    import re
    from pathlib import Path

    package = Path(__file__).parents[2] / "irpo_megatron"
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert sources
    # `model.eval()` and the like are methods, not the builtin.
    forbidden = re.compile(
        r"(?<![.\w])(eval|exec)\(|pickle\.loads?\(|torch\.load\((?![^)]*weights_only=True)|"
        r"trust_remote_code(=|\": )True"
    )
    assert [path.name for path, text in sources.items() if forbidden.search(text)] == []
