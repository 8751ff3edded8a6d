"""From pairs to micro-batches: the order of the data, its share for this rank, and padded tensors.

Shapes: m pairs (or rows) in a micro-batch, b = sequences in it, s = its longest sequence.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from irpo_megatron.records import Pair
from irpo_megatron.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token ids of prompt + completion, padded on the right; causal attention keeps padding out of every real token."""

    tokens: torch.Tensor
    """[b, s - 1] inputs: every column but the last, which predicts nothing."""
    positions: torch.Tensor
    """[b, s - 1] 0, 1, 2, ... in every row."""
    targets: torch.Tensor
    """[n] the completion tokens of all sequences, one after the other."""
    target_rows: torch.Tensor
    """[n] the sequence each target belongs to."""
    target_columns: torch.Tensor
    """[n] the position of `tokens` that predicts it."""

    @property
    def count(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A micro-batch of m pairs: rows 0 to m-1 of `sequences` are the chosen, m to 2m-1 the rejected completions.

    Without rejected completions (methods `star` and `sft`) only the first m rows exist.
    """

    sequences: Sequences
    pair_ids: tuple[str, ...]
    weights: torch.Tensor
    """[m] 1, or 0 for a pair that only fills the last batch up to its shape."""
    chosen_tokens: torch.Tensor
    """[m] completion tokens of the chosen, |w|."""
    reference_chosen: torch.Tensor
    """[m] log p_ref of the chosen; zeros where the method has no DPO term."""
    reference_rejected: torch.Tensor
    """[m]"""
    has_rejected: bool


@dataclass(frozen=True, kw_only=True)
class WeightedPair:
    """A pair with what the reference says of it."""

    pair: Pair
    weight: float
    reference_chosen: float
    reference_rejected: float


def steps_an_epoch(pairs: int, global_batch_size: int) -> int:
    """Optimizer steps that visit every pair once; the last one may see fewer pairs than the others."""
    return -(-pairs // global_batch_size)


def step_indices(
    step: int, *, pairs: int, global_batch_size: int, shuffle: bool, seed: int, iteration: int
) -> list[int]:
    """Which pairs optimizer step `step` (0-based) sees, a function of the seed alone.

    Returns:
        Between 1 and `global_batch_size` indices below `pairs`.
    """
    epoch, step_in_epoch = divmod(step, steps_an_epoch(pairs, global_batch_size))
    order = _shuffled(pairs, derive_seed(seed, "order", iteration, epoch)) if shuffle else range(pairs)
    return list(order[step_in_epoch * global_batch_size : (step_in_epoch + 1) * global_batch_size])


@functools.lru_cache(maxsize=1)
def _shuffled(pairs: int, seed: int) -> tuple[int, ...]:
    """The order of one epoch; the last one is remembered, since every step of the epoch asks for it."""
    order = list(range(pairs))
    random.Random(seed).shuffle(order)
    return tuple(order)


def share_of_rank(
    batch: Sequence[WeightedPair], *, micro_batch_size: int, data_rank: int, data_size: int
) -> list[list[WeightedPair]]:
    """The micro-batches of one data-parallel rank.

    A batch that does not fill all ranks' micro-batches is filled up with copies of its first pair, of weight 0: they
    keep the shapes regular and add exactly nothing to loss and gradient.
    """
    unit = micro_batch_size * data_size
    filler = WeightedPair(pair=batch[0].pair, weight=0.0, reference_chosen=0.0, reference_rejected=0.0)
    filled = [*batch, *[filler] * (-len(batch) % unit)]
    mine = filled[data_rank::data_size]
    return [mine[start : start + micro_batch_size] for start in range(0, len(mine), micro_batch_size)]


def pad_sequences(rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Sequences:
    """Pad (prompt ids, completion ids) rows to the longest of them."""
    assert all(prompt for prompt, _ in rows), (
        "a prompt has at least one token: what would predict the completion's first?"
    )
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    targets: list[int] = []
    target_rows: list[int] = []
    target_columns: list[int] = []
    for row, (prompt, completion) in enumerate(rows):
        tokens[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        targets.extend(completion)
        target_rows.extend([row] * len(completion))
        # The token before a completion token predicts it; the first one is predicted by the end of the prompt.
        target_columns.extend(range(len(prompt) - 1, lengths[row] - 1))
    inputs = tokens[:, :-1].contiguous()
    return Sequences(
        tokens=inputs.to(device),
        positions=torch.arange(inputs.shape[1]).expand(len(rows), -1).contiguous().to(device),
        targets=torch.tensor(targets).to(device),
        target_rows=torch.tensor(target_rows).to(device),
        target_columns=torch.tensor(target_columns).to(device),
    )


def pair_batch(pairs: Sequence[WeightedPair], *, with_rejected: bool, device: torch.device) -> PairBatch:
    """The tensors of one micro-batch; chosen and rejected of a pair are never separated."""
    rows = [(item.pair.prompt_ids, item.pair.chosen_ids) for item in pairs]
    if with_rejected:
        rows += [(item.pair.prompt_ids, item.pair.rejected_ids) for item in pairs]
    return PairBatch(
        sequences=pad_sequences(rows, device),
        pair_ids=tuple(item.pair.pair_id for item in pairs),
        weights=torch.tensor([item.weight for item in pairs], device=device),
        chosen_tokens=torch.tensor([float(len(item.pair.chosen_ids)) for item in pairs], device=device),
        reference_chosen=torch.tensor([item.reference_chosen for item in pairs], device=device),
        reference_rejected=torch.tensor([item.reference_rejected for item in pairs], device=device),
        has_rejected=with_rejected,
    )
