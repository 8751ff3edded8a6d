"""Where a completion ends, whatever the engine says."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.generation.ending import Ending
from irpo_megatron.generation.protocol import Completion, SamplingSettings
from irpo_megatron.tokenizer import Tokenizer

A, B, C, Q, EOS = 2, 3, 4, 18, 1


@pytest.fixture
def tokenizer(model_folder: Path) -> Tokenizer:
    """One character a token, joined by spaces; `<eos>` (1) and q (18) end a completion."""
    return Tokenizer(model_folder)


def end(tokenizer: Tokenizer, ids: list[int], finish: object, why: object = None, *, stop: str = "") -> Completion:
    settings = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=6, stop=(stop,) if stop else ())
    return Ending("the engine", tokenizer, settings).complete(ids, finish, why)


@pytest.mark.parametrize(
    ("ids", "finish", "why", "expected"),
    [
        ([A, B, EOS], "stop", None, [A, B, EOS]),
        ([A, B, Q], "stop", Q, [A, B, Q]),
        ([A, B], "stop", None, [A, B, EOS]),  # left out: it must have been the end token that the engine was given
        ([A, B], "stop", Q, [A, B, Q]),
        ([], "stop", None, [EOS]),
        ([A, EOS, B, B, B, B], "length", None, [A, EOS]),  # went on past its end
        ([A, B, C, A, B, EOS], "length", None, [A, B, C, A, B, EOS]),
    ],
)
def test_end_tokens(tokenizer: Tokenizer, ids: list[int], finish: str, why: object, expected: list[int]) -> None:
    assert end(tokenizer, ids, finish, why) == Completion(
        ids=tuple(expected), text=tokenizer.decode(expected), finish_reason="stop"
    )


def test_max_tokens(tokenizer: Tokenizer) -> None:
    completion = end(tokenizer, [A, B, C, A, B, C], "length")
    assert completion == Completion(ids=(A, B, C, A, B, C), text="a b c a b c", finish_reason="length")


@pytest.mark.parametrize(
    ("ids", "finish", "why", "length"),
    [
        ([A, B, C], "stop", "b c", 3),
        ([A, B, C, A, B, C], "length", None, 3),  # the engine looked for it in other tokens
        ([A, EOS, B, C], "stop", None, 2),
        ([A, B, C, EOS], "stop", None, 3),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, ids: list[int], finish: str, why: object, length: int) -> None:
    completion = end(tokenizer, ids, finish, why, stop="b c")
    assert (completion.ids, completion.finish_reason) == (tuple(ids[:length]), "stop")


@pytest.mark.parametrize(
    ("ids", "finish", "why"),
    [
        ([A], "timeout", None),
        ([A], "cancelled", None),
        ([A], None, None),
        ([A], "length", None),  # cut off before its time
        ([A], "stop", "b c"),  # the string itself is gone
        ([A], "stop", 5),  # no end token of this model
        ([A] * 7, "length", None),
        ([A] * 6, "stop", None),  # with the end token, more than was asked for
    ],
)
def test_an_end_that_cannot_be(tokenizer: Tokenizer, ids: list[int], finish: object, why: object) -> None:
    with pytest.raises(UserError) as caught:
        end(tokenizer, ids, finish, why)
    assert f"finish_reason = {finish!r}" in caught.value.seen
