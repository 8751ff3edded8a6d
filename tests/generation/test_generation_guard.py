"""The limits on samples that are of no use."""

from __future__ import annotations

import pytest

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.guard import SampleGuard
from irpo_megatron.records import FinishReason, Sample


def sample(index: int, completion: str, finish_reason: FinishReason = "stop") -> Sample:
    return Sample(
        prompt_id="train-000007",
        sample_index=index,
        seed=1,
        prompt="x" * 200 + "What is 2 + 2?\nSolution:",
        prompt_ids=(1,),
        completion=completion,
        completion_ids=(2,),
        finish_reason=finish_reason,
    )


def test_shares_at_their_limits_pass() -> None:
    guard = SampleGuard(GenerationConfig(max_empty_share=0.25, max_truncated_share=0.5))
    guard.add([sample(0, ""), sample(1, "a", "length"), sample(2, "b", "length"), sample(3, "c")])
    guard.check()


def test_no_samples_pass() -> None:
    SampleGuard(GenerationConfig(max_empty_share=0.0)).check()


def test_too_many_empty_samples_fail_with_examples() -> None:
    guard = SampleGuard(GenerationConfig(max_empty_share=0.25))
    guard.add([sample(0, " \n"), sample(1, "a")])
    guard.add([sample(index, "") for index in range(2, 6)])
    with pytest.raises(UserError) as caught:
        guard.check()
    message = str(caught.value)
    assert "5 of 6 samples (83.3%) are empty" in message
    assert "generation.max_empty_share = 0.25" in message
    assert "raise generation.max_empty_share" in message
    assert message.count("train-000007/") == 3
    assert r"Solution:' -> ...' \n'; train-000007/2: " in message
    assert len(message) < 900


def test_too_many_truncated_samples_fail_with_their_last_words() -> None:
    guard = SampleGuard(GenerationConfig(max_truncated_share=0.5, max_tokens=400))
    guard.add([sample(0, "a" * 500 + "and so on", "length"), sample(1, "b", "length"), sample(2, "c")])
    with pytest.raises(UserError) as caught:
        guard.check()
    assert "2 of 3 samples (66.7%) are cut off at 400 tokens" in caught.value.seen
    assert "and so on'" in caught.value.seen
    assert "a" * 61 not in caught.value.seen
    assert "raise generation.max_tokens" in caught.value.remedy


def test_a_check_may_wait_for_enough_samples() -> None:
    guard = SampleGuard(GenerationConfig(max_truncated_share=0.5))
    guard.add([sample(0, "a", "length"), sample(1, "b", "length")])
    guard.check(at_least=3)
    guard.add([sample(2, "a")])
    with pytest.raises(UserError, match="2 of 3"):
        guard.check(at_least=3)
