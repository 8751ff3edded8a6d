"""Engines that ignore seeds are found out; models that are sure of themselves are left alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.seed_check import refuse_ignored_seeds


def check(said: list[list[int]], *, temperature: float = 1.0, one_seed: bool = False) -> int:
    """What each prompt's samples say, a token each -> completions that came through."""
    requests = [
        SampleRequest(prompt_ids=(prompt,), seed=0 if one_seed else index)
        for prompt, tokens in enumerate(said)
        for index in range(len(tokens))
    ]
    tokens = [token for row in said for token in row]

    def sample(requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[tuple[int, Completion]]:
        pulled = len(list(requests))
        for position in reversed(range(pulled)):  # samples end in any order
            yield position, Completion(ids=(tokens[position],), text="", finish_reason="stop")

    settings = SamplingSettings(temperature=temperature, top_p=1.0, max_tokens=5)
    return len(list(refuse_ignored_seeds(sample, requests, settings, engine="the engine")))


def test_equal_samples_of_many_prompts() -> None:
    with pytest.raises(UserError, match="the engine said the same in all samples of each of 8 prompts"):
        check([[7, 7, 7]] * 8)


def test_one_sample_that_differs() -> None:
    assert check([[7, 7, 7]] * 7 + [[7, 7, 8]]) == 24


def test_few_prompts_say_nothing() -> None:
    assert check([[7, 7, 7]] * 7) == 21


def test_prompts_with_one_sample_say_nothing() -> None:
    assert check([[7]] * 50) == 50


def test_one_seed_may_say_the_same() -> None:
    assert check([[7, 7, 7]] * 8, one_seed=True) == 24


def test_greedy_decoding_may_say_the_same() -> None:
    assert check([[7, 7, 7]] * 8, temperature=0.0) == 24
