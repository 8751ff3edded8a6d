"""The limits on samples that are of no use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.claims.files import shard_path
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.guard import ShardGuard
from irpo_megatron.records import FinishReason, Sample, write_rows
from irpo_megatron.tasks import load_task


def sample(index: int, completion: str, finish_reason: FinishReason = "stop") -> Sample:
    return Sample(
        prompt_id="train-000007",
        sample_index=index,
        seed=1,
        prompt="x" * 200 + "What is 2 + 2?\nSolution:",
        prompt_ids=(1,),
        completion=completion,
        completion_ids=(index,),
        finish_reason=finish_reason,
    )


def watch(partial: Path, shards: list[list[Sample]], **limits: Any) -> ShardGuard:
    """A guard that is told of shards as they are published."""
    guard = ShardGuard(partial, GenerationConfig(**limits), load_task("gsm8k"))
    names = [f"x-{number}" for number in range(len(shards))]
    for name, samples in zip(names, shards, strict=True):
        write_rows(shard_path(partial, name), samples, Sample)
        guard.watch(name, samples, among=names)
    return guard


def test_shares_at_their_limits_pass(tmp_path: Path) -> None:
    shard = [sample(0, ""), sample(1, "a", "length"), sample(2, "b", "length"), sample(3, "c")]
    guard = watch(tmp_path, [shard], max_empty_share=0.25, max_truncated_share=0.5, max_unparsable_share=1.0)
    counts = {"samples": 4, "empty": 1, "truncated": 2, "repeated": 0, "unparsable": 4}
    assert guard.check(["x-0"]) == {**counts, "shards": {"x-0": counts}}


def test_no_samples_pass(tmp_path: Path) -> None:
    counts = watch(tmp_path, [], max_empty_share=0.0).check([])
    assert counts == {"samples": 0, "empty": 0, "truncated": 0, "repeated": 0, "unparsable": 0, "shards": {}}


def test_too_many_empty_samples_fail_with_examples(tmp_path: Path) -> None:
    shards = [[sample(0, " \n"), sample(1, "a")], [sample(index, "") for index in range(2, 6)]]
    guard = watch(tmp_path, shards, max_empty_share=0.25)
    with pytest.raises(UserError) as caught:
        guard.check(["x-0", "x-1"])
    message = str(caught.value)
    assert "5 of 6 samples (83.3%) are empty" in message
    assert "generation.max_empty_share = 0.25" in message
    assert "raise generation.max_empty_share" in message
    assert message.count("train-000007/") == 3
    assert r"Solution:' -> ...' \n'; train-000007/2: " in message
    assert len(message) < 900


def test_too_many_truncated_samples_fail_with_their_last_words(tmp_path: Path) -> None:
    shard = [sample(0, "a" * 500 + "and so on", "length"), sample(1, "b", "length"), sample(2, "c")]
    guard = watch(tmp_path, [shard], max_truncated_share=0.5, max_tokens=400)
    with pytest.raises(UserError) as caught:
        guard.check(["x-0"])
    assert "2 of 3 samples (66.7%) are cut off at 400 tokens" in caught.value.seen
    assert "and so on'" in caught.value.seen
    assert "a" * 61 not in caught.value.seen
    assert "raise generation.max_tokens" in caught.value.remedy


def test_an_engine_that_ignores_seeds_is_found_out_by_default(tmp_path: Path) -> None:
    same = [replace(sample(k, "Final answer: 4"), completion_ids=(5, 6)) for k in range(4)]
    with pytest.raises(UserError, match=r"4 of 4 samples .* are all that their prompt was answered"):
        watch(tmp_path, [same]).check(["x-0"])


def test_too_many_without_an_answer(tmp_path: Path) -> None:
    shard = [sample(0, "Final answer: 4"), sample(1, "four"), sample(2, "4")]
    watch(tmp_path, [shard]).check(["x-0"])  # a base model may know no format
    with pytest.raises(UserError, match=r"2 of 3 samples \(66\.7%\) hold no final answer"):
        watch(tmp_path, [shard], max_unparsable_share=0.6).check(["x-0"])


def test_few_samples_say_nothing_until_all_are_there(tmp_path: Path) -> None:
    shards = [[sample(index, "a", "length") for index in range(250)] for _ in range(2)]
    guard = watch(tmp_path, shards[:1], max_truncated_share=0.5)
    with pytest.raises(UserError, match="250 of 250"):
        guard.check(["x-0"])
    with pytest.raises(UserError, match="500 of 500"):
        watch(tmp_path, shards, max_truncated_share=0.5)


def test_shards_of_other_workers_count(tmp_path: Path) -> None:
    """Of one its worker has left the counts, of another it died before it could."""
    watch(tmp_path, [[sample(index, "") for index in range(200)]], max_empty_share=1.0)
    write_rows(shard_path(tmp_path, "x-1"), [sample(index, "") for index in range(100)], Sample)
    mine = [sample(index, "a") for index in range(100)]
    write_rows(shard_path(tmp_path, "x-2"), mine, Sample)
    guard = ShardGuard(tmp_path, GenerationConfig(max_empty_share=0.7), load_task("gsm8k"))
    with pytest.raises(UserError, match="300 of 400 samples"):
        guard.watch("x-2", mine, among=["x-0", "x-1", "x-2", "x-3"])
