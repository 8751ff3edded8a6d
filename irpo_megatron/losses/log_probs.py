"""Log-probabilities of given tokens from hidden states; logits exist for a chunk of the tokens at a time.

Logits are by far the largest tensor of a language model: those of 8,192 tokens over a vocabulary of 128,000 take 4 GB.
Only one number a token is wanted of them, so they are made a chunk at a time and made again in the backward pass. The
output matrix may be cut over the ranks of a process group, by rows, which are the columns of the logits.

Shapes: n tokens, h hidden size, v rows of the output matrix on this rank, the first c of them real (the rest padding).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

# Softmax goes over the same numbers several times. On a CPU that takes half as long if this many bytes at a time, which
# fit into the cache of one core, go through all of it.
_CACHE_BYTES = 2 * 2**20

# A CPU multiplies matrices with denormal numbers (below 1e-38) in them more than ten times as slowly, and probabilities
# can be that small. No fp32 sum notices the difference between them and exp(-60) = 1e-26.
_LEAST_EXPONENT = -60.0

# Whether torch.mm can hand out the fp32 sums of a bf16 product (CUDA only, from torch 2.8 on).
_MM_HAS_OUT_DTYPE = hasattr(torch.ops.aten.mm, "dtype_out")


def token_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocabulary: int,
    group: dist.ProcessGroup,
    logits_bytes: int,
) -> torch.Tensor:
    """log p(target) of each token, in fp32, differentiable in the hidden states and the output matrix.

    The gradient in `hidden` is this rank's part of it: the caller sums it over the group (by an all-reduce, or a
    reduce-scatter under sequence parallelism). That in `weight` is summed in fp32; `_WeightGradient` says where.

    Args:
        hidden: [n, h] final hidden states of the predicting positions, the same on every rank of the group; fp32 or
            bf16, like `weight`.
        weight: [v, h] this rank's rows of the output matrix; rank r of the group holds rows r*v to (r+1)*v.
        targets: [n] token ids over the whole vocabulary, each below `vocabulary`.
        vocabulary: Size of the real vocabulary; rows from there on are padding and have no probability.
        group: The tensor-parallel group.
        logits_bytes: Bytes of fp32 logits that may exist at once on this rank; those of one token always may. If all n
            tokens fit, their logits are kept for the backward pass instead of being made again.

    Returns:
        [n], the same on every rank of the group.
    """
    assert hidden.dtype == weight.dtype, f"hidden states are {hidden.dtype}, the output matrix is {weight.dtype}"
    result: torch.Tensor = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, vocabulary, group, logits_bytes
    )
    return result


def sequence_sums(values: torch.Tensor, sequence: torch.Tensor, sequences: int) -> torch.Tensor:
    """Sum of per-token values over each sequence.

    Args:
        values: [n] one value a token.
        sequence: [n] index of the token's sequence.
        sequences: How many sequences there are; one without tokens sums to 0.

    Returns:
        [sequences].
    """
    sums = values.new_zeros(sequences)
    if values.is_cuda:  # index_add adds in an order that varies there, and index_put sorts first
        return sums.index_put((sequence,), values, accumulate=True)
    return sums.index_add(0, sequence, values)


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) = logit of the target - log of the sum of exp(logits)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        vocabulary: int,
        group: dist.ProcessGroup,
        logits_bytes: int,
    ) -> torch.Tensor:
        tokens, rows = hidden.shape[0], weight.shape[0]
        first = group.rank() * rows
        columns = min(max(vocabulary - first, 0), rows)
        is_mine = (targets >= first) & (targets < first + columns)
        column = (targets - first).masked_fill(~is_mine, 0)[:, None]

        # What a rank of padding only, which has no chunks, adds to the other ranks'.
        score = hidden.new_zeros((tokens, 1), dtype=torch.float32)
        largest, total = torch.full_like(score, -torch.inf), torch.ones_like(score)
        chunks = _chunks(tokens, logits_bytes // (4 * rows)) if columns else []
        buffer = _logits_buffer(hidden, chunks, columns)
        for chunk in chunks:
            logits = _logits(hidden[chunk], weight[:columns], buffer)
            score[chunk] = logits.gather(-1, column[chunk])
            _exponentials(logits, largest[chunk], total[chunk])
        score.masked_fill_(~is_mine[:, None], 0.0)
        score, log_total = _over_ranks(score, largest + total.log(), group)

        ctx.save_for_backward(hidden, weight, column, is_mine[:, None], largest, log_total)
        ctx.columns, ctx.chunks = columns, chunks
        ctx.exponentials = buffer if len(chunks) == 1 else None
        ctx.main_grad = getattr(weight, "main_grad", None)  # not saved for backward: others add to it in between
        is_real = (targets >= 0) & (targets < vocabulary)
        return (score - log_total)[:, 0].masked_fill(~is_real, -torch.inf)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """d log p(target) / d logits = one_hot(target) - softmax; the rest as for any matrix product."""
        gradient = gradients[0][:, None]
        hidden, weight, column, is_mine, largest, log_total = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        in_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if needs_hidden else None
        in_weight = _WeightGradient(weight, ctx.main_grad) if needs_weight else None

        # Used up below, so a second pass over the same graph makes the logits again.
        kept, ctx.exponentials = ctx.exponentials, None
        buffer = _logits_buffer(hidden, ctx.chunks, ctx.columns) if kept is None else kept
        for chunk in ctx.chunks:
            if kept is None:
                in_logits = _logits(hidden[chunk], weight[: ctx.columns], buffer)
                _exponentials_relative_to(log_total[chunk], in_logits)
                in_logits.mul_(-gradient[chunk])
            else:
                in_logits = kept.mul_(-gradient * (largest - log_total).exp())
            in_logits.scatter_add_(-1, column[chunk], gradient[chunk] * is_mine[chunk])
            in_rounded_logits = in_logits.to(hidden.dtype)
            if in_hidden is not None:
                torch.mm(in_rounded_logits, weight[: ctx.columns], out=in_hidden[chunk])
            if in_weight is not None:
                in_weight.add(in_logits, in_rounded_logits, hidden[chunk])
            del in_rounded_logits  # a tensor of its own in bf16, and so will be the product that starts the next chunk
        return in_hidden, None if in_weight is None else in_weight.for_autograd(), None, None, None, None


class _WeightGradient:
    """The gradient of the output matrix, summed in fp32 and left where it belongs.

    A parameter under Megatron-Core's data-parallel wrapper carries the fp32 buffer `main_grad`, to which a hook adds
    the gradient that autograd has put together from all uses of the parameter. Here the sums are made in that buffer
    directly, and autograd is handed a zero: the hook runs, finds a gradient (on which it insists when it overlaps
    communication), and adds what other uses contribute, as the embedding does where the two are tied. The zero is
    sparse, so it takes neither memory nor time. Megatron-Core's own convention, an arbitrary gradient and the flag
    `grad_added_to_main_grad`, has the hook discard the embedding's part unless the parameter carries another mark.

    Any other weight gets its gradient through autograd, rounded once to its dtype.
    """

    def __init__(self, weight: torch.Tensor, main_grad: torch.Tensor | None) -> None:
        """`main_grad`: [v, h] the weight's buffer, if it has one; passed over if it is not fp32."""
        self._weight = weight
        self._is_main = main_grad is not None and main_grad.dtype == torch.float32
        if main_grad is not None and self._is_main:
            self._sum = main_grad
        else:
            self._sum = torch.zeros_like(weight, dtype=torch.float32)

    def add(self, in_logits: torch.Tensor, in_rounded_logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add one chunk.

        Args:
            in_logits: [n, c] gradient in the logits, fp32.
            in_rounded_logits: The same in the dtype of `hidden`.
            hidden: [n, h].
        """
        real_rows = self._sum[: in_logits.shape[1]]
        if hidden.is_cuda and hidden.dtype != torch.float32:
            real_rows.add_(_product(in_rounded_logits.T, hidden))
        else:
            real_rows.addmm_(in_logits.T, hidden.float())

    def for_autograd(self) -> torch.Tensor:
        """What the backward pass returns for the weight."""
        if not self._is_main:
            return self._sum.to(self._weight.dtype)
        weight = self._weight
        return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device, layout=torch.sparse_coo)


def _chunks(tokens: int, most: int) -> list[slice]:
    """Tokens in as few chunks of at most `most` (at least one) as it takes, about equally long."""
    count = math.ceil(tokens / max(most, 1))
    size = math.ceil(tokens / max(count, 1))
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, max(size, 1))]


def _logits_buffer(hidden: torch.Tensor, chunks: list[slice], columns: int) -> torch.Tensor:
    """Room for the logits of the longest chunk, the first."""
    return hidden.new_empty((chunks[0].stop if chunks else 0, columns), dtype=torch.float32)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Logits of a chunk, in fp32, written into the first rows of the buffer."""
    return _product(hidden, weight.T, out=buffer[: hidden.shape[0]])


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """left @ right in fp32, the factors used in the dtype they have."""
    if out is None:
        out = left.new_empty((left.shape[0], right.shape[1]), dtype=torch.float32)
    if left.dtype == torch.float32:
        return torch.mm(left, right, out=out)
    if left.is_cuda and _MM_HAS_OUT_DTYPE:
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    return out.copy_(left @ right)


def _exponentials(logits: torch.Tensor, largest: torch.Tensor, total: torch.Tensor) -> None:
    """Turn logits into exp(logit - largest of the row), in place, and fill in each row's largest logit and sum."""
    for rows in _cached_rows(logits):
        torch.amax(logits[rows], dim=-1, keepdim=True, out=largest[rows])
        _exp_relative_to(largest[rows], logits[rows])
        torch.sum(logits[rows], dim=-1, keepdim=True, out=total[rows])


def _exponentials_relative_to(level: torch.Tensor, logits: torch.Tensor) -> None:
    """Turn logits into exp(logit - level of the row), in place."""
    for rows in _cached_rows(logits):
        _exp_relative_to(level[rows], logits[rows])


def _exp_relative_to(level: torch.Tensor, logits: torch.Tensor) -> None:
    logits.sub_(level)
    if not logits.is_cuda:
        logits.clamp_(min=_LEAST_EXPONENT)
    logits.exp_()


def _cached_rows(logits: torch.Tensor) -> list[slice]:
    """The rows in blocks that go through several operations each before the next."""
    if logits.is_cuda:
        return [slice(0, logits.shape[0])]
    return _chunks(logits.shape[0], _CACHE_BYTES // (4 * logits.shape[1]))


def _over_ranks(
    score: torch.Tensor, log_total: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, log of the sum of exponentials) over the ranks, of [n, 1] values each."""
    if group.size() == 1 or score.numel() == 0:
        return score, log_total
    largest = log_total.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    sums = torch.stack([score, (log_total - largest).exp()])
    dist.all_reduce(sums, group=group)
    return sums[0], largest + sums[1].log()
