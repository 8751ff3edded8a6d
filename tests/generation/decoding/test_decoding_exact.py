"""The exact model: how far the steps' logits lie from it, and what it corrects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_model import make_llama

from irpo_megatron.generation.decoding.exact import ExactModel
from irpo_megatron.generation.decoding.rows import NewRow, begin_rows
from irpo_megatron.generation.decoding.sampling import EXACT, choose, measure_errors, uniform
from irpo_megatron.generation.protocol import SamplingSettings

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=6)


def load(folder: Path, **changes: object) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(make_llama(folder, **changes)).eval()
    return model


@pytest.mark.parametrize(("layers", "scale"), [(2, 1.0), (16, 8.0)], ids=["usual", "chaotic"])
def test_the_bound_holds_on_other_sequences_than_it_was_measured_on(tmp_path: Path, layers: int, scale: float) -> None:
    model = load(tmp_path / "model", num_hidden_layers=layers, scale=scale)
    with torch.inference_mode():
        bounds = ExactModel(model).bounds(0.8)
        ids = torch.randint(29, (64, 100), generator=torch.Generator().manual_seed(5))
        logits = model(ids).logits
        seen = measure_errors(logits, model.double()(ids).logits, 0.8)
        assert seen.largest < bounds.largest / 1.5
        assert seen.spread < bounds.spread / 1.5


def test_the_first_wrong_token_of_a_row_is_corrected(tmp_path: Path) -> None:
    model = load(tmp_path / "model", num_hidden_layers=2)
    prompts = [(3, 4, 5), (6,), (7, 8)]
    rows = begin_rows(
        [
            NewRow(request=row, seed=row + 40, prompt=row, prompt_ids=prompt, prompt_pages=[])
            for row, prompt in enumerate(prompts)
        ],
        SETTINGS.max_tokens,
        torch.device("cpu"),
    )
    right = [sample_slowly(model, prompt, seed) for prompt, seed in zip(prompts, (40, 41, 42), strict=True)]
    rows.completions = torch.tensor(right)
    rows.counts[:] = SETTINGS.max_tokens
    rows.doubtful[:] = True
    with torch.inference_mode():
        exact = ExactModel(model)
        assert list(exact.corrections(rows, prompts, SETTINGS)) == []
        for row, place in ((0, 2), (0, 4), (2, 0)):
            rows.completions[row, place] = (rows.completions[row, place] + 1) % 29
        assert list(exact.corrections(rows, prompts, SETTINGS)) == [(0, 2, right[0][2]), (2, 0, right[2][0])]
        rows.doubtful[0, 2] = False  # what is certain is not looked at
        assert (0, 2) not in [(row, place) for row, place, _ in exact.corrections(rows, prompts, SETTINGS)]


def sample_slowly(model: torch.nn.Module, prompt: tuple[int, ...], seed: int) -> list[int]:
    """One token at a time, from the whole sequence."""
    ids: list[int] = []
    with torch.inference_mode():
        for place in range(SETTINGS.max_tokens):
            logits = model(torch.tensor([[*prompt, *ids]])).logits[:, -1].double()
            uniforms = uniform(torch.tensor([seed]), torch.tensor([place]))
            ids.append(int(choose(logits, uniforms, SETTINGS, EXACT)[0]))
    return ids
