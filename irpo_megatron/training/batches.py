"""From the pairs of a global batch to this rank's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from irpo_megatron.config import TrainingConfig
from irpo_megatron.engine.inputs import ModelInput
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Head, Targets
from irpo_megatron.errors import UserError
from irpo_megatron.records import Pair
from irpo_megatron.training.packing import chunk, pack, share_evenly
from irpo_megatron.training.sequences import Row, Sequences, lay_out


@dataclass(frozen=True, kw_only=True)
class WeightedPair:
    """A pair with what the reference says of it."""

    pair: Pair
    weight: float
    """1, or 0 for a pair that only keeps a rank busy."""
    reference_chosen: float
    reference_rejected: float


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A micro-batch of m pairs: completions 2i and 2i + 1 of `sequences` are pair i's chosen and rejected one.

    Without rejected completions (methods `star` and `sft`) only the m chosen ones exist.
    """

    sequences: Sequences
    pair_ids: tuple[str, ...]
    weights: torch.Tensor
    """[m] 1, or 0 for a pair that only keeps a rank busy."""
    chosen_tokens: torch.Tensor
    """[m] completion tokens of the chosen, |w|."""
    reference_chosen: torch.Tensor
    """[m] log p_ref of the chosen; zeros where the method has no DPO term."""
    reference_rejected: torch.Tensor
    """[m]"""
    has_rejected: bool

    @property
    def input(self) -> ModelInput:
        return self.sequences.input

    @property
    def targets(self) -> Targets:
        return self.sequences.targets


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How pairs or rows become micro-batches."""

    shared_prompt: bool
    pairs_a_micro_batch: int | None
    """Padded to the longest; None packs up to `tokens_a_micro_batch`."""
    tokens_a_micro_batch: int

    def bins(self, tokens: Sequence[int]) -> list[list[int]]:
        """Which items share a micro-batch; `tokens` of each."""
        if self.pairs_a_micro_batch is None:
            return pack(tokens, self.tokens_a_micro_batch)
        return chunk(tokens, self.pairs_a_micro_batch)

    @property
    def padded(self) -> bool:
        return self.pairs_a_micro_batch is not None


def batching_of(training: TrainingConfig, place: Place) -> Batching:
    """The configuration's batching, as far as the attention in use can.

    Raises:
        UserError: prompts are to be shared, and it cannot.
    """
    if training.shared_prompt and not place.can_share_prompts:
        raise UserError(
            "training.shared_prompt = true, and attention is Transformer Engine's",
            "its attention keeps sequences apart, so that completions cannot attend to one prompt",
            "set training.shared_prompt=null, which shares prompts where the attention in use can",
        )
    return Batching(
        shared_prompt=place.can_share_prompts if training.shared_prompt is None else training.shared_prompt,
        pairs_a_micro_batch=training.micro_batch_size,
        tokens_a_micro_batch=training.micro_batch_tokens,
    )


def row_of(pair: Pair, *, with_rejected: bool) -> Row:
    """The completions that are trained on, behind their prompt."""
    completions = [pair.chosen_ids, pair.rejected_ids] if with_rejected else [pair.chosen_ids]
    return Row(prompt=pair.prompt_ids, completions=completions)


def share_of_rank(
    batch: Sequence[WeightedPair], batching: Batching, place: Place, *, with_rejected: bool
) -> list[list[WeightedPair]]:
    """The micro-batches of one data-parallel rank.

    Where it must compute more than its pairs ask for (no pair is left for it; an interleaved pipeline takes its
    micro-batches in groups), it computes its shortest pair again with weight 0: that adds exactly nothing to loss and
    gradient.
    """

    def tokens_of(items: Sequence[WeightedPair]) -> list[int]:
        rows = [row_of(item.pair, with_rejected=with_rejected) for item in items]
        return [row.tokens(shared_prompt=batching.shared_prompt) for row in rows]

    tokens = tokens_of(batch)
    indices = share_evenly(tokens, place.data_size)[place.data_rank]
    shortest = min(indices or range(len(batch)), key=lambda index: (tokens[index], index))
    filler = replace(batch[shortest], weight=0.0)
    mine = [batch[index] for index in indices] or [filler]
    micro_batches = [[mine[index] for index in bin_] for bin_ in batching.bins(tokens_of(mine))]
    return micro_batches + [[filler]] * (-len(micro_batches) % place.micro_batch_group)


def pair_batch(
    pairs: Sequence[WeightedPair], batching: Batching, place: Place, head: Head, *, with_rejected: bool
) -> PairBatch:
    """The tensors of one micro-batch; chosen and rejected of a pair are never separated."""
    rows = [row_of(item.pair, with_rejected=with_rejected) for item in pairs]
    device = place.device
    return PairBatch(
        sequences=lay_out(rows, place, head, shared_prompt=batching.shared_prompt, padded=batching.padded),
        pair_ids=tuple(item.pair.pair_id for item in pairs),
        weights=torch.tensor([item.weight for item in pairs], device=device),
        chosen_tokens=torch.tensor([float(len(item.pair.chosen_ids)) for item in pairs], device=device),
        reference_chosen=torch.tensor([item.reference_chosen for item in pairs], device=device),
        reference_rejected=torch.tensor([item.reference_rejected for item in pairs], device=device),
        has_rejected=with_rejected,
    )
