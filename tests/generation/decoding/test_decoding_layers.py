"""A step over pages, against transformers' own forward pass of the whole sequence in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_model import FAMILIES, make_model

from irpo_megatron.config_generation import TransformersConfig
from irpo_megatron.generation.decoding.attention import PromptPages, StepAttention, find_readers
from irpo_megatron.generation.decoding.layers import Layers
from irpo_megatron.generation.decoding.pages import PAGE, Pages, page_shape, pages_for
from irpo_megatron.generation.transformers import TransformersGenerator

PROMPTS = ((3, 4, 5, 6, 7), (9,) * (PAGE + 9), (2,))
STEPS = PAGE + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_over_pages_equal_the_whole_sequence(family: str, tmp_path: Path) -> None:
    """Two rows share each prompt; they cross a page's end."""
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / family, family)
    model = TransformersGenerator(folder, batch_size=1, settings=TransformersConfig()).model
    exact = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 29, (len(prompts), STEPS), generator=draw)
    with torch.inference_mode():
        seen = logits_by_steps(model, tokens, prompts)
        for row, prompt in enumerate(prompts):
            whole = exact(torch.tensor([[*prompt, *tokens[row].tolist()]])).logits[0, len(prompt) - 1 : -1]
            assert (seen[row] - whole).abs().max() < 2e-5 * whole.abs().max()


def logits_by_steps(model: torch.nn.Module, tokens: torch.Tensor, prompts: list[tuple[int, ...]]) -> torch.Tensor:
    """[rows, STEPS, vocabulary]: the logits after a prompt, and after each of the `tokens` but the last."""
    shape = page_shape(model)
    own, shared = Pages(100, shape), Pages(100, shape)
    page_table = torch.zeros(len(prompts), 4, dtype=torch.long)
    for row in range(0, len(prompts), 2):
        known = prompts[row][:-1]
        pages = shared.take(pages_for(len(known)))
        page_table[row : row + 2, : len(pages)] = torch.tensor(pages, dtype=torch.long)
        if known:
            filled = torch.ones(1, len(pages), dtype=torch.bool)
            store = PromptPages(shared, torch.tensor(pages), filled)
            model.base_model(input_ids=torch.tensor([known]), use_cache=False, store=store)  # type: ignore[operator]
    known_tokens = torch.tensor([len(prompt) - 1 for prompt in prompts])
    readers = find_readers(shared, page_table, known_tokens, torch.arange(len(prompts)) % 2)
    own_table = torch.tensor([own.take(2) for _ in prompts])
    layers, last, seen = Layers(model), torch.tensor([prompt[-1] for prompt in prompts]), []
    for step in range(STEPS):
        counts = torch.full((len(prompts),), step)
        own_readers = find_readers(own, own_table, counts + 1, torch.zeros_like(counts))
        attention = StepAttention(own_readers, readers, own_table, counts)
        seen.append(layers.logits(last, known_tokens + step, attention))
        last = tokens[:, step]
    return torch.stack(seen, dim=1)
