"""The pairs of one problem (paper, section 2): winners and losers, walked together round and round.

Pair k is (W[k mod |W|], L[k mod |L|]) for k = 0 .. K-1. The paper leaves the order of W and L open; here both are
shuffled by a seed of the problem's own, so that K smaller than a set takes a fair draw from it, and the order in which
samples arrive changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from irpo_megatron.config import PairsConfig
from irpo_megatron.pairs.counts import Counts
from irpo_megatron.records import Pair, Sample

GOLD_SAMPLE = -1
"""Stands for the gold solution where a sample's index is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A completion that may stand in a pair."""

    sample_index: int
    """`GOLD_SAMPLE` for the gold solution."""
    text: str
    ids: tuple[int, ...]


def pair_problem(
    samples: Sequence[Sample],
    correct: Mapping[int, bool],
    *,
    gold: Candidate | None,
    settings: PairsConfig,
    longest: int,
    seed: int,
    held_out: bool,
) -> tuple[list[Pair], Counts]:
    """The pairs of one problem, in the order of k.

    Args:
        samples: All samples of the problem, at least one, in any order.
        correct: Sample index -> verdict.
        gold: The gold solution as one more winner; it is shuffled in among the others. None adds none.
        longest: Longest sequence in tokens, prompt included; a pair with a longer one is dropped.
        seed: Of this problem and iteration.
        held_out: Whether the problem is held out.
    """
    ordered = sorted(samples, key=lambda sample: sample.sample_index)
    whole = [sample for sample in ordered if sample.finish_reason == "stop"]
    usable = [
        Candidate(sample_index=sample.sample_index, text=sample.completion, ids=sample.completion_ids)
        for sample in whole
        if sample.completion.strip()
    ]
    winners = [candidate for candidate in usable if correct[candidate.sample_index]]
    losers = [candidate for candidate in usable if not correct[candidate.sample_index]]
    counts = Counts(
        problems=1,
        samples=len(samples),
        samples_truncated=len(samples) - len(whole),
        samples_empty=len(whole) - len(usable),
        winners=len(winners),
        winners_distinct=len(distinct(winners)),
        losers=len(losers),
        losers_distinct=len(distinct(losers)),
    )
    if not usable:
        return [], counts + Counts(problems_unusable=1)
    if not losers:
        return [], counts + Counts(problems_all_right=1)
    if gold is not None:
        winners = [*winners, gold]
        counts += Counts(gold_winners=1)
    if not winners:
        return [], counts + Counts(problems_all_wrong=1)
    if settings.deduplicate:
        winners, losers = distinct(winners), distinct(losers)
    pairs, dropped = _keep(
        [
            _pair(k, ordered[0], chosen, rejected, held_out)
            for k, (chosen, rejected) in enumerate(walk(winners, losers, settings.per_prompt, seed=seed))
        ],
        longest,
    )
    return pairs, counts + dropped + Counts(problems_paired=1, pairs=len(pairs))


def walk(
    winners: Sequence[Candidate], losers: Sequence[Candidate], count: int, *, seed: int
) -> list[tuple[Candidate, Candidate]]:
    """`count` pairs from two sets that are not empty; the one that runs out starts again from its first element."""
    draw = random.Random(seed)
    winners = draw.sample(winners, len(winners))
    losers = draw.sample(losers, len(losers))
    return [(winners[k % len(winners)], losers[k % len(losers)]) for k in range(count)]


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each sequence of token ids."""
    first: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.ids, candidate)
    return list(first.values())


def fault_of(pair: Pair, longest: int) -> Literal["too long", "identical"] | None:
    """Why a pair cannot be trained on, if it cannot."""
    if pair.chosen_ids == pair.rejected_ids or pair.chosen == pair.rejected:
        return "identical"
    if len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) > longest:
        return "too long"
    return None


def limit_pairs(pairs: list[Pair], limit: int | None, *, seed: int) -> list[Pair]:
    """At most `limit` pairs, drawn by the seed, in their order; all where `limit` is None."""
    if limit is None or limit >= len(pairs):
        return pairs
    chosen = random.Random(seed).sample(range(len(pairs)), limit)
    return [pairs[position] for position in sorted(chosen)]


def _pair(k: int, sample: Sample, chosen: Candidate, rejected: Candidate, held_out: bool) -> Pair:
    """Pair k of the prompt of `sample`: the ids are those that were sampled, never encoded again."""
    return Pair(
        pair_id=f"{sample.prompt_id}/{k:03d}",
        prompt_id=sample.prompt_id,
        prompt=sample.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        prompt_ids=sample.prompt_ids,
        chosen_ids=chosen.ids,
        rejected_ids=rejected.ids,
        chosen_sample=chosen.sample_index,
        rejected_sample=rejected.sample_index,
        held_out=held_out,
    )


def _keep(pairs: Sequence[Pair], longest: int) -> tuple[list[Pair], Counts]:
    """The pairs without a fault, and how many had which."""
    faults = [fault_of(pair, longest) for pair in pairs]
    kept = [pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]
    return kept, Counts(pairs_too_long=faults.count("too long"), pairs_identical=faults.count("identical"))
