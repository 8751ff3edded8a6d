"""Vocab-parallel log-probs against torch's log_softmax on the whole vocabulary in float64."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from support.ranks import on_ranks

from irpo_megatron.losses.log_probs import sequence_sums, token_log_probs

TOKENS = 13


def _inputs(vocabulary: int, padded: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits [n, padded] with large values in the padding, targets [n], weights [n])."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 6 * torch.randn(TOKENS, padded, generator=generator)
    logits[:, vocabulary:] = 50.0  # padding that would swallow all probability if it counted
    targets = torch.randint(vocabulary, (TOKENS,), generator=generator)
    targets[:3] = torch.tensor([0, vocabulary - 1, vocabulary // 2])
    return logits, targets, torch.randn(TOKENS, generator=generator)


def _on_one_rank(vocabulary: int, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's result and the gradient of its columns."""
    logits, targets, weights = _inputs(vocabulary, padded)
    mine = logits.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()].clone().requires_grad_()
    result = token_log_probs(mine, targets, vocabulary=vocabulary, group=dist.group.WORLD)
    (result * weights).sum().backward()
    assert mine.grad is not None
    return result.detach(), mine.grad


@pytest.mark.parametrize(
    ("ranks", "vocabulary", "padded"),
    [
        (1, 11, 11),
        (1, 11, 16),
        (2, 12, 12),
        (2, 11, 12),
        (4, 13, 16),
        (4, 9, 16),
    ],  # the last: two ranks hold no real column
)
def test_value_and_gradient_are_those_of_log_softmax(ranks: int, vocabulary: int, padded: int) -> None:
    logits, targets, weights = _inputs(vocabulary, padded)
    whole = logits.double().requires_grad_()
    expected = torch.log_softmax(whole[:, :vocabulary], dim=-1)[torch.arange(TOKENS), targets]
    (expected * weights.double()).sum().backward()
    assert whole.grad is not None

    results = on_ranks(ranks, _on_one_rank, vocabulary, padded)
    for values, _ in results:
        torch.testing.assert_close(values.double(), expected.detach(), atol=2e-5, rtol=1e-6)
    gradient = torch.cat([gradient for _, gradient in results], dim=-1).double()
    torch.testing.assert_close(gradient, whole.grad, atol=1e-6, rtol=1e-5)
    assert torch.count_nonzero(gradient[:, vocabulary:]) == 0


def test_sums_over_sequences_keep_each_token_with_its_own() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    sums = sequence_sums(values, torch.tensor([0, 2, 2, 0]), 4)
    assert sums.tolist() == [9.0, 0.0, 6.0, 0.0]
