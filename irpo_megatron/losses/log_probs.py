"""Log-probabilities of given tokens from logits whose vocabulary is cut over the ranks of a process group.

Shapes: n tokens, v vocabulary columns on this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def token_log_probs(
    logits: torch.Tensor, targets: torch.Tensor, *, vocabulary: int, group: dist.ProcessGroup
) -> torch.Tensor:
    """log p(target) of each token, in fp32, differentiable in the logits.

    Args:
        logits: [n, v] this rank's columns; rank r of the group holds columns r*v to (r+1)*v.
        targets: [n] token ids over the whole vocabulary, each below `vocabulary`.
        vocabulary: Size of the real vocabulary; columns from there on are padding and have no probability.
        group: The tensor-parallel group.

    Returns:
        [n], the same on every rank of the group.
    """
    result: torch.Tensor = _VocabParallelLogProb.apply(logits, targets, vocabulary, group)  # type: ignore[no-untyped-call]
    return result


class _VocabParallelLogProb(torch.autograd.Function):
    """log softmax at the target, with three all-reduces of [n] and no gathered logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, vocabulary: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        columns = logits.shape[-1]
        first = group.rank() * columns
        scores = logits.float()
        real_columns = min(max(vocabulary - first, 0), columns)
        if real_columns < columns:
            scores = scores.clone()
            scores[:, real_columns:] = -torch.inf

        largest = scores.amax(dim=-1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        exponentials = (scores - largest[:, None]).exp()
        total = exponentials.sum(dim=-1)
        dist.all_reduce(total, group=group)

        column = targets - first
        is_mine = (column >= 0) & (column < columns)
        column = column.clamp(0, columns - 1)[:, None]
        target_score = (scores.gather(-1, column)[:, 0] - largest).masked_fill(~is_mine, 0.0)
        dist.all_reduce(target_score, group=group)

        ctx.save_for_backward(exponentials / total[:, None], column, is_mine)
        ctx.dtype = logits.dtype
        return target_score - total.log()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """d log p(target) / d logits = one_hot(target) - softmax."""
        (gradient,) = gradients
        softmax, column, is_mine = ctx.saved_tensors
        in_logits = -softmax * gradient[:, None]
        in_logits.scatter_add_(-1, column, (gradient * is_mine)[:, None])
        return in_logits.to(ctx.dtype), None, None, None


def sequence_sums(values: torch.Tensor, sequence: torch.Tensor, sequences: int) -> torch.Tensor:
    """Sum of per-token values over each sequence.

    Args:
        values: [n] one value a token.
        sequence: [n] index of the token's sequence.
        sequences: How many sequences there are; one without tokens sums to 0.

    Returns:
        [sequences].
    """
    return values.new_zeros(sequences).index_add(0, sequence, values)
