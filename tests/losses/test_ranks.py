"""A sum over ranks, and whose gradient it is."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from support.places import ALONE
from support.ranks import on_ranks

from irpo_megatron.losses.ranks import sum_over_ranks


def _values(rank: int) -> torch.Tensor:
    return torch.arange(6.0).view(2, 3) + 10 * rank


def _squared_sum() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(total, gradient in a part, gradient in a part that is not contiguous, the part after all that)."""
    assert dist.group.WORLD is not None
    part = _values(dist.get_rank()).requires_grad_()
    total = sum_over_ranks(part, dist.group.WORLD)
    total.pow(2).sum().backward()
    turned = _values(dist.get_rank()).T.contiguous().requires_grad_()
    turned_total = sum_over_ranks(turned.T, dist.group.WORLD)
    assert torch.equal(turned_total, total)
    turned_total.pow(2).sum().backward()
    assert part.grad is not None
    assert turned.grad is not None
    return total.detach(), part.grad, turned.grad.T, part.detach()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_has_the_sum_and_the_gradient_of_its_own_part(ranks: int) -> None:
    """All ranks compute one loss, so d loss / d part = d loss / d sum = 2 x sum here: not that times the ranks."""
    expected = torch.stack([_values(rank) for rank in range(ranks)]).sum(dim=0)
    for rank, (total, in_part, in_turned, part) in enumerate(on_ranks(ranks, _squared_sum)):
        assert torch.equal(total, expected)
        assert torch.equal(in_part, 2 * expected)
        assert torch.equal(in_turned, 2 * expected)
        assert torch.equal(part, _values(rank)), "what was summed is left as it was"


def test_alone_nothing_is_communicated() -> None:
    part = _values(0).requires_grad_()
    total = sum_over_ranks(part, ALONE)
    total.sum().backward()
    assert torch.equal(total, part)
    assert total.data_ptr() != part.data_ptr()
    assert part.grad is not None
    assert torch.equal(part.grad, torch.ones(2, 3))
