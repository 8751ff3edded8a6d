"""A step over pages, against transformers' own forward pass of the whole sequence in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_model import FAMILIES, make_model

from irpo_megatron.config_generation import TransformersConfig
from irpo_megatron.generation.decoding.cpu_step import CpuStep
from irpo_megatron.generation.decoding.layers import Layers
from irpo_megatron.generation.decoding.pages import PAGE, Pages, page_shape, pages_for
from irpo_megatron.generation.decoding.prompts import PromptPages
from irpo_megatron.generation.decoding.rows import NewRow, begin_rows
from irpo_megatron.generation.decoding.torch_step import TorchStep
from irpo_megatron.generation.transformers import TransformersGenerator

PROMPTS = ((3, 4, 5, 6, 7), (9,) * (PAGE + 9), (2,))
STEPS = PAGE + 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operations", [CpuStep, TorchStep])
def test_steps_over_pages_equal_the_whole_sequence(operations: Any, family: str, tmp_path: Path) -> None:
    """Two rows share each prompt; they cross a page's end."""
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / family, family)
    model = TransformersGenerator(folder, batch_size=1, settings=TransformersConfig()).model
    exact = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 29, (len(prompts), STEPS), generator=draw)
    with torch.inference_mode():
        seen = logits_by_steps(operations, model, tokens, prompts)
        for row, prompt in enumerate(prompts):
            whole = exact(torch.tensor([[*prompt, *tokens[row].tolist()]])).logits[0, len(prompt) - 1 : -1]
            assert (seen[row] - whole).abs().max() < 2e-5 * whole.abs().max()


def logits_by_steps(
    operations: Any, model: torch.nn.Module, tokens: torch.Tensor, prompts: list[tuple[int, ...]]
) -> torch.Tensor:
    """[rows, STEPS, vocabulary]: the logits after a prompt, and after each of the `tokens` but the last."""
    shape = page_shape(model)
    own, shared = Pages(100, shape), Pages(100, shape)
    new = []
    for row, prompt in enumerate(prompts):
        pages = new[-1].prompt_pages if row % 2 else shared.take(pages_for(len(prompt) - 1))
        if pages and not row % 2:
            store = PromptPages(shared, torch.tensor(pages), torch.ones(1, len(pages), dtype=torch.bool))
            model.base_model(input_ids=torch.tensor([prompt[:-1]]), use_cache=False, store=store)  # type: ignore[operator]
        new.append(NewRow(request=row, seed=0, prompt=row // 2, prompt_ids=prompt, prompt_pages=pages))
    rows = begin_rows(new, STEPS, torch.device("cpu"))
    rows.pages[:] = torch.tensor([own.take(2) for _ in prompts])
    layers, seen = Layers(model), []
    for step in range(STEPS):
        seen.append(layers.logits(rows.last, rows.prompt_tokens + rows.counts, operations(own, shared, rows)))
        rows.append(tokens[:, step], torch.ones(len(prompts), dtype=torch.bool))
    return torch.stack(seen, dim=1)
