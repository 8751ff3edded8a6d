"""Rotary embeddings against complex numbers in float64, and against the implementation in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from irpo_megatron.engine.rope_config import RopeScaling
from irpo_megatron.engine.rotary import frequencies, rotary_table, rotate

SIZE = 12
# Not in order, and some twice: positions under a shared prompt do not simply count up.
POSITIONS = torch.tensor([0, 1, 2, 1, 2, 3, 500, 0, 4095])


def _heads(dtype: torch.dtype = torch.float32, *, heads: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(POSITIONS), heads, SIZE, generator=generator, dtype=torch.float64).to(dtype)


def _expected(heads: torch.Tensor, *, base: float, back: bool = False) -> torch.Tensor:
    """Component k with component k + size / 2 is a complex number, turned by position x base^(-2k / size)."""
    half = SIZE // 2
    angles = POSITIONS.double()[:, None] * base ** (-2 * torch.arange(half).double() / SIZE)
    number = torch.complex(heads[..., :half].double(), heads[..., half:].double())
    turned = number * torch.exp(1j * (-angles if back else angles))[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def _assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """An angle of 4095 is off by up to 4095 x 2^-24 = 2.4e-4 in fp32; a small one is not."""
    torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-3, rtol=0)
    near = POSITIONS < 10
    torch.testing.assert_close(ours.double()[near], theirs.double()[near], atol=2e-6, rtol=0)


@pytest.mark.parametrize("base", [10000.0, 5e5])
def test_every_head_is_turned_by_the_angles_of_its_position(base: float) -> None:
    heads = _heads()
    turned = rotate(heads, rotary_table(POSITIONS, size=SIZE, base=base))
    assert turned.is_contiguous()
    assert turned.dtype == torch.float32
    _assert_close(turned, _expected(heads, base=base))


def test_it_is_what_transformers_computes() -> None:
    config = LlamaConfig(hidden_size=3 * SIZE, num_attention_heads=3, head_dim=SIZE, rope_theta=5e5)
    base = float(config.rope_parameters["rope_theta"] if hasattr(config, "rope_parameters") else config.rope_theta)
    assert base == 5e5
    query, key = _heads(), _heads(heads=2)
    rotary: Any = LlamaRotaryEmbedding(config)
    cos, sin = rotary(query, POSITIONS[None])
    # There: [batch, heads, tokens, size].
    theirs = apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin)
    table = rotary_table(POSITIONS, size=SIZE, base=base)
    for ours, other in zip((query, key), theirs, strict=True):
        _assert_close(rotate(ours, table), other[0].transpose(0, 1))


# Llama 3.1's and 3.2's; one whose original context is short; one that leaves hardly any room between few and many.
SCALINGS = [
    RopeScaling(factor=8, low_frequency_factor=1, high_frequency_factor=4, original_context=8192),
    RopeScaling(factor=32, low_frequency_factor=1, high_frequency_factor=4, original_context=8192),
    RopeScaling(factor=3.5, low_frequency_factor=1.5, high_frequency_factor=5, original_context=40),
    RopeScaling(factor=1, low_frequency_factor=2, high_frequency_factor=2.0001, original_context=4000),
]


@pytest.mark.parametrize("size", [12, 64, 128])
@pytest.mark.parametrize("base", [10000.0, 5e5])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_frequencies_are_to_the_bit_those_of_transformers(scaling: RopeScaling, base: float, size: int) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": float(scaling.factor),
        "low_freq_factor": float(scaling.low_frequency_factor),
        "high_freq_factor": float(scaling.high_frequency_factor),
        "original_max_position_embeddings": scaling.original_context,
    }
    config = LlamaConfig(hidden_size=3 * size, num_attention_heads=3, head_dim=size, rope_theta=base, rope_scaling=rope)
    theirs, of_attention = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert of_attention == 1.0
    ours = frequencies(size, base, scaling)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)
    if scaling.factor > 1:
        plain = frequencies(size, base)
        assert 0 < int((ours == plain).sum()) < size // 2, "some are kept, others not"


def test_a_table_of_scaled_frequencies() -> None:
    cos, sin = rotary_table(POSITIONS, size=SIZE, base=5e5, scaling=SCALINGS[2])
    angles = POSITIONS.float()[:, None, None] * frequencies(SIZE, 5e5, SCALINGS[2])
    assert torch.equal(cos, angles.cos())
    assert torch.equal(sin, angles.sin())


def test_a_gradient_is_turned_back() -> None:
    heads, gradient = _heads().requires_grad_(), _heads().flip(0)
    rotate(heads, rotary_table(POSITIONS, size=SIZE, base=10000.0)).backward(gradient)
    assert heads.grad is not None
    _assert_close(heads.grad, _expected(gradient, base=10000.0, back=True))


def test_gradcheck() -> None:
    """Linear, so the differences are exact for a step of any size; a large one drowns the rounding to fp32."""
    table = rotary_table(POSITIONS, size=SIZE, base=10000.0)
    heads = _heads(torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda given: rotate(given, table), (heads,), eps=0.5, atol=1e-5, rtol=1e-5)


def test_bf16_is_rounded_once() -> None:
    heads = _heads(torch.bfloat16).requires_grad_()
    table = rotary_table(POSITIONS, size=SIZE, base=10000.0)
    turned = rotate(heads, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(heads.detach().float(), table).bfloat16())
    turned.sum().backward()
    assert heads.grad is not None
    assert heads.grad.dtype == torch.bfloat16


def test_views_that_are_not_contiguous_are_turned_as_any_other() -> None:
    """Query, key and value are slices of one tensor where Megatron-Core hands them over."""
    heads = _heads()
    table = rotary_table(POSITIONS, size=SIZE, base=10000.0)
    view = torch.cat([heads, heads], dim=-1)[..., :SIZE]
    assert not view.is_contiguous()
    assert torch.equal(rotate(view, table), rotate(heads, table))
