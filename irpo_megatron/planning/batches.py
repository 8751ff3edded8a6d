"""How many tokens a micro-batch holds, from the lengths of prompts and completions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from irpo_megatron.config import Config


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of a prompt and of a completion, its end token included."""

    prompt: float
    completion: float
    longest_prompt: float
    longest_completion: float


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A micro-batch before CP cuts it; sums over its completions.

    Attributes:
        tokens: What the model computes.
        predicted: Completion tokens, which reach the output matrix.
        keys: Tokens that each attention call sees, summed over the calls: a shared prompt is seen by both completions.
        scores: Queries x keys, summed over the attention calls, masked ones included.
        masked_scores: The part of them in calls that need a mask on a CPU, the second completions of shared prompts.
    """

    tokens: float
    predicted: float
    keys: float
    scores: float
    masked_scores: float
    shared: bool

    def times(self, count: float) -> MicroBatch:
        """So many of it."""
        return MicroBatch(
            tokens=count * self.tokens,
            predicted=count * self.predicted,
            keys=count * self.keys,
            scores=count * self.scores,
            masked_scores=count * self.masked_scores,
            shared=self.shared,
        )


def pair_batch(prompt: float, completion: float, *, shared: bool, completions: int = 2) -> MicroBatch:
    """A pair, or with one completion a demonstration; the last token of a completion is not computed."""
    fed = completion - 1
    first = prompt + fed
    others = completions - 1
    if shared:
        masked = others * fed * first
        return MicroBatch(
            tokens=first + others * fed,
            predicted=completions * completion,
            keys=completions * first,
            scores=first**2 + masked,
            masked_scores=masked,
            shared=others > 0,
        )
    return MicroBatch(
        tokens=completions * first,
        predicted=completions * completion,
        keys=completions * first,
        scores=completions * first**2,
        masked_scores=0,
        shared=False,
    )


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A rank's share of a global batch: `count` micro-batches, the fullest of them `fullest`, all of them `total`."""

    fullest: MicroBatch
    count: int
    total: MicroBatch


def rank_batches(config: Config, lengths: Lengths, *, shared: bool) -> Batches:
    """A data-parallel rank's micro-batches in one optimizer step, as `training.packing` makes them of such pairs."""
    training = config.training
    completions = 2 if config.method == "irpo" else 1
    mean = pair_batch(lengths.prompt, lengths.completion, shared=shared, completions=completions)
    longest = pair_batch(lengths.longest_prompt, lengths.longest_completion, shared=shared, completions=completions)
    pairs = max(1, training.global_batch_size // config.parallel.data)
    if training.micro_batch_size is not None:  # padded to the longest of it
        in_a_batch, fullest = training.micro_batch_size, longest.times(training.micro_batch_size)
    else:
        in_a_batch = max(1, int(training.micro_batch_tokens // mean.tokens))
        full = mean.times(min(pairs, training.micro_batch_tokens / mean.tokens))
        fullest = max(full, longest, key=lambda batch: batch.tokens)
    needed = math.ceil(pairs / in_a_batch)
    # An interleaved pipeline takes them in multiples of PP: single pairs that count for nothing fill them up.
    group = config.parallel.pipeline if config.parallel.virtual_pipeline > 1 else 1
    count = math.ceil(needed / group) * group
    return Batches(fullest=fullest, count=count, total=mean.times(pairs + count - needed))
