"""Prompts with their completions as one stream, and the sum of log-probs of each completion that comes back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.inputs import ModelInput, model_input
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Head, Targets
from irpo_megatron.engine.streams import Stream
from irpo_megatron.losses.log_probs import sequence_sums, token_log_probs
from irpo_megatron.losses.ranks import sum_over_ranks

Tokens = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt and some completions of it."""

    prompt: Tokens
    completions: Sequence[Tokens]

    def tokens(self, *, shared_prompt: bool) -> int:
        """How many tokens the model computes: a completion's last one predicts nothing and is left out."""
        prompts = 1 if shared_prompt else len(self.completions)
        return prompts * len(self.prompt) + sum(len(completion) - 1 for completion in self.completions)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """A micro-batch of completions: what this rank computes of them."""

    input: ModelInput
    targets: Targets
    """The completion tokens that this context-parallel rank predicts."""
    completion_of: torch.Tensor
    """[n] the completion that each target belongs to."""
    count: int
    """Completions in the micro-batch, in the order of the rows."""

    def completion_sums(self, log_probs: torch.Tensor, place: Place) -> torch.Tensor:
        """log p(completion | prompt) of every completion, [count]: sums over its tokens on all context-parallel ranks.

        Args:
            log_probs: [n] of the targets.
        """
        return sum_over_ranks(sequence_sums(log_probs, self.completion_of, self.count), place.context_group)


def log_prob_head(architecture: Architecture, place: Place, *, mib: int) -> Head:
    """What computes the log-probs of tokens from hidden states, with at most `mib` MiB of logits at once."""
    return functools.partial(
        token_log_probs,
        vocabulary=architecture.vocabulary,
        group=place.tensor_group,
        logits_bytes=mib * 2**20,
    )


def lay_out(rows: Sequence[Row], place: Place, head: Head, *, shared_prompt: bool, padded: bool) -> Sequences:
    """Put the rows' tokens into one stream.

    Args:
        head: What computes log-probs from hidden states.
        shared_prompt: The completions of a row continue one copy of its prompt.
        padded: Fill every sequence (every row, where prompts are shared) up to the longest.
    """
    assert all(row.prompt and all(row.completions) for row in rows), (
        "a prompt has at least one token, to predict the completion's first, and so has a completion"
    )
    if not shared_prompt:
        alone = [Row(prompt=row.prompt, completions=[completion]) for row in rows for completion in row.completions]
    else:
        alone = list(rows)
    longest = max(row.tokens(shared_prompt=True) for row in alone)
    stream = Stream()
    tokens: list[int] = []
    predicted_by: list[int] = []
    completion_of: list[int] = []
    count = 0
    for row in alone:
        start = len(stream.tokens)
        end_of_prompt = start + len(row.prompt)
        for number, completion in enumerate(row.completions):
            if number == 0:
                first = stream.append([*row.prompt, *completion[:-1]]) + len(row.prompt)
            else:
                first = stream.append(completion[:-1], prefix=range(start, end_of_prompt))
            tokens.extend(completion)
            # The token before a completion token predicts it; the first one is predicted by the end of the prompt.
            predicted_by.extend([end_of_prompt - 1, *range(first, first + len(completion) - 1)])
            completion_of.extend([count] * len(completion))
            count += 1
        if padded:
            stream.fill_to(start + longest)
        stream.fill(place.piece_multiple)
    inputs = model_input(stream, place)
    columns = inputs.columns[torch.tensor(predicted_by)]
    mine = columns >= 0
    return Sequences(
        input=inputs,
        targets=Targets(
            tokens=torch.tensor(tokens)[mine].to(place.device), predicted_by=columns[mine].to(place.device), head=head
        ),
        completion_of=torch.tensor(completion_of)[mine].to(place.device),
        count=count,
    )
