"""The pairs stage over shards of samples and scores, and over gold solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.artifacts import read_json
from irpo_megatron.config import Method, PairsConfig, SelectionConfig
from irpo_megatron.errors import UserError
from irpo_megatron.pairs.build import GOLD_SAMPLE
from irpo_megatron.pairs.stage import run
from irpo_megatron.records import Pair, Problem, Sample, Score, read_rows, write_rows
from irpo_megatron.requests import PairsRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer

RIGHT, WRONG = "3+4=7;Final answer:H", "3+4=?;Final answer:L"


def problem(index: int, *, solution: str | None = RIGHT) -> Problem:
    return Problem(id=f"train-{index:06d}", question="3+4", answer="H", solution=solution)


def samples_of(tokenizer: Tokenizer, prompt_id: str, *completions: str, cut: bool = False) -> list[Sample]:
    ids = [tokenizer.encode_completion(text) for text in completions]
    return [
        Sample(
            prompt_id=prompt_id,
            sample_index=index,
            seed=0,
            prompt="3+4:",
            prompt_ids=tokenizer.encode_prompt("3+4:"),
            completion=text,
            completion_ids=ids[index][:-1] if cut else ids[index],
            finish_reason="length" if cut else "stop",
        )
        for index, text in enumerate(completions)
    ]


class Setting:
    """Problems, samples and scores on disk."""

    def __init__(self, root: Path, model_folder: Path) -> None:
        self.root = root
        self.model_folder = model_folder
        self.tokenizer = Tokenizer(model_folder)
        for name in ("problems", "generations", "scores"):
            (root / name).mkdir()

    def problems(self, train: list[Problem], held_out: list[Problem] | None = None) -> None:
        write_rows(self.root / "problems" / "train.parquet", train, Problem)
        write_rows(self.root / "problems" / "held_out.parquet", held_out or [], Problem)

    def shard(self, number: int, samples: list[Sample]) -> None:
        task, name = load_task("arithmetic"), f"generations-{number:05d}.parquet"
        scores = [
            Score(
                prompt_id=row.prompt_id,
                sample_index=row.sample_index,
                answer=task.extract_answer(row.completion),
                correct=task.is_correct(row.completion, "H"),
            )
            for row in samples
        ]
        write_rows(self.root / "generations" / name, samples, Sample)
        write_rows(self.root / "scores" / name, scores, Score)

    def build(
        self, *, method: Method = "irpo", retrain: bool = False, iteration: int = 1, output: str = "pairs", **pairs: Any
    ) -> tuple[list[Pair], dict[str, int]]:
        directory = self.root / output
        directory.mkdir(exist_ok=True)
        request = PairsRequest(
            output=directory,
            iteration=iteration,
            seed=0,
            task="arithmetic",
            method=method,
            pairs=PairsConfig(**pairs),
            selection=SelectionConfig(retrain=retrain),
            problems=self.root / "problems",
            generations=None if method == "sft" else self.root / "generations",
            scores=None if method == "sft" else self.root / "scores",
            model_folder=self.model_folder,
        )
        run(request)
        counts = read_json(directory / "counts.json")
        rows = read_rows(directory / "pairs.parquet", Pair)
        assert counts["pairs"] == len(rows)
        assert counts["pairs_held_out"] == sum(row.held_out for row in rows)
        return rows, {name: count for name, count in counts.items() if count}


@pytest.fixture
def setting(tmp_path: Path, model_folder: Path) -> Setting:
    return Setting(tmp_path, model_folder)


@pytest.fixture
def four(setting: Setting) -> Setting:
    """Four problems in two shards: mixed, all right, all wrong, mixed with a sample that is cut off."""
    setting.problems([problem(index) for index in range(4)])
    tokenizer = setting.tokenizer
    setting.shard(
        0,
        [
            *samples_of(tokenizer, "train-000003", WRONG, RIGHT),
            *samples_of(tokenizer, "train-000001", RIGHT, RIGHT),
        ],
    )
    mixed = samples_of(tokenizer, "train-000000", WRONG, RIGHT, "")
    setting.shard(1, [*samples_of(tokenizer, "train-000002", WRONG, WRONG), *mixed[::-1]])
    return setting


def test_pairs_stand_in_the_order_of_the_problems(four: Setting) -> None:
    rows, counts = four.build(per_prompt=3)
    assert [row.pair_id for row in rows] == [f"train-00000{i}/{k:03d}" for i in (0, 3) for k in range(3)]
    assert {(row.chosen, row.rejected, row.chosen_sample, row.rejected_sample) for row in rows} == {
        (RIGHT, WRONG, 1, 0)
    }
    assert counts == {
        "problems": 4,
        "problems_paired": 2,
        "problems_all_right": 1,
        "problems_all_wrong": 1,
        "samples": 9,
        "samples_empty": 1,
        "winners": 4,
        "winners_distinct": 3,
        "losers": 4,
        "losers_distinct": 3,
        "pairs": 6,
    }


def test_ids_are_those_that_were_sampled(setting: Setting) -> None:
    """`Final answer:` spelt letter by letter has no tokens here, but a model may spell a phrase otherwise than the
    tokenizer does: what was sampled is trained on, not what encoding the text again would give."""
    setting.problems([problem(0)])
    strange = [*samples_of(setting.tokenizer, "train-000000", RIGHT, WRONG)]
    ids = (0, *strange[0].completion_ids)  # <pad> decodes to nothing
    object.__setattr__(strange[0], "completion_ids", ids)
    setting.shard(0, strange)
    rows, _ = setting.build(per_prompt=1)
    assert rows[0].chosen_ids == ids
    assert rows[0].prompt_ids == strange[0].prompt_ids


def test_star_takes_the_same_pairs(four: Setting) -> None:
    assert four.build(method="star", output="star") == four.build(method="irpo")


def test_gold_solutions_join_the_winners(four: Setting) -> None:
    rows, counts = four.build(per_prompt=2, gold_as_winner=True)
    assert [row.prompt_id for row in rows] == [f"train-00000{i}" for i in (0, 0, 2, 2, 3, 3)]
    gold = next(row for row in rows if row.chosen_sample == GOLD_SAMPLE)
    assert (gold.chosen, gold.chosen_ids) == (RIGHT, four.tokenizer.encode_completion(RIGHT))
    assert (counts["gold_winners"], counts["problems_paired"], "problems_all_wrong" in counts) == (3, 3, False)


def test_problems_without_gold_are_counted(setting: Setting) -> None:
    setting.problems([problem(0), problem(1, solution=None)])
    for index in range(2):
        setting.shard(index, samples_of(setting.tokenizer, f"train-00000{index}", WRONG))
    rows, counts = setting.build(per_prompt=2, gold_as_winner=True)
    assert {row.prompt_id for row in rows} == {"train-000000"}
    assert (counts["problems_without_gold"], counts["problems_all_wrong"]) == (1, 1)


@pytest.mark.parametrize("method", ["irpo", "sft"])
def test_no_gold_solution_at_all(setting: Setting, method: Method) -> None:
    setting.problems([problem(0, solution=None), problem(1, solution="")])
    setting.shard(0, [row for i in range(2) for row in samples_of(setting.tokenizer, f"train-00000{i}", RIGHT, WRONG)])
    with pytest.raises(UserError, match="none of the 2 problems has a gold solution"):
        setting.build(method=method, gold_as_winner=True)


def test_held_out_problems_take_part_only_when_retraining(setting: Setting) -> None:
    held_out = problem(1)
    setting.problems([problem(0)], [held_out])
    setting.shard(0, samples_of(setting.tokenizer, "train-000000", RIGHT, WRONG))
    setting.shard(1, samples_of(setting.tokenizer, held_out.id, RIGHT, WRONG))
    rows, counts = setting.build(retrain=True, per_prompt=2)
    assert [(row.prompt_id, row.held_out) for row in rows] == [
        ("train-000000", False),
        ("train-000000", False),
        ("train-000001", True),
        ("train-000001", True),
    ]
    assert counts["pairs_held_out"] == 2
    assert [row.held_out for row in setting.build(method="sft", retrain=True, output="a")[0]] == [False, True]
    assert [row.held_out for row in setting.build(method="sft", output="b")[0]] == [False]
    with pytest.raises(UserError, match="samples of train-000001, which is no problem of this run"):
        setting.build(per_prompt=2)


def test_pairs_of_held_out_problems_alone_are_nothing_to_train_on(setting: Setting) -> None:
    setting.problems([problem(0)], [problem(1)])
    setting.shard(0, samples_of(setting.tokenizer, "train-000000", RIGHT, RIGHT))
    setting.shard(1, samples_of(setting.tokenizer, "train-000001", RIGHT, WRONG))
    with pytest.raises(UserError, match="no pair to train on is left"):
        setting.build(retrain=True)


def test_no_pairs_at_all_shows_the_counts(setting: Setting) -> None:
    setting.problems([problem(0), problem(1)])
    tokenizer = setting.tokenizer
    setting.shard(
        0, [*samples_of(tokenizer, "train-000000", RIGHT), *samples_of(tokenizer, "train-000001", WRONG, cut=True)]
    )
    with pytest.raises(UserError, match="problems 2, problems_all_right 1, problems_unusable 1, samples 2") as caught:
        setting.build()
    assert "generation.max_tokens" in caught.value.remedy


def test_max_pairs_is_drawn_anew_each_iteration(four: Setting) -> None:
    drawn = [four.build(per_prompt=30, max_pairs=10, iteration=t, output=f"p{t}") for t in (1, 2)]
    first, second = ([row.pair_id for row in rows] for rows, _ in drawn)
    assert len(first) == len(second) == 10
    assert first != second
    assert first == sorted(first)
    assert drawn[0][1]["pairs_over_limit"] == 50


@pytest.mark.parametrize(("max_tokens", "too_long"), [(None, 0), (64, 0), (12, 0), (11, 4), (1000, 0)])
def test_long_pairs_are_dropped(setting: Setting, max_tokens: int | None, too_long: int) -> None:
    """A prompt of 5 tokens; completions of 3 and, for the other problem, 7."""
    setting.problems([problem(0), problem(1)])
    tokenizer = setting.tokenizer
    setting.shard(0, samples_of(tokenizer, "train-000000", "Final answer:H", "Final answer:L"))
    setting.shard(1, samples_of(tokenizer, "train-000001", "4=?;Final answer:H", "4=?;Final answer:L"))
    rows, counts = setting.build(per_prompt=4, max_tokens=max_tokens)
    lengths = {len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) for row in rows}
    assert max(lengths) <= (max_tokens or 64)
    assert counts.get("pairs_too_long", 0) == too_long


def test_no_pair_is_longer_than_the_context(setting: Setting) -> None:
    setting.problems([problem(0), problem(1)])
    setting.shard(0, samples_of(setting.tokenizer, "train-000000", RIGHT, WRONG))
    setting.shard(1, samples_of(setting.tokenizer, "train-000001", RIGHT, "1" * 60))
    _, counts = setting.build(per_prompt=2, max_tokens=1000)
    assert (counts["pairs"], counts["pairs_too_long"]) == (2, 2)


def test_the_seed_of_a_problem_is_its_own(four: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | int, ...]] = []

    def recorded(run_seed: int, *names: str | int) -> int:
        asked.append((run_seed, *names))
        return derive_seed(run_seed, *names)

    monkeypatch.setattr("irpo_megatron.pairs.stage.derive_seed", recorded)
    four.build(iteration=3)
    assert {names for names in asked if names[1] == "pairs"} == {(0, "pairs", 3, f"train-00000{i}") for i in range(4)}


def test_sharding_changes_nothing(setting: Setting) -> None:
    setting.problems([problem(index) for index in range(6)])
    rows = [samples_of(setting.tokenizer, f"train-{i:06d}", RIGHT, WRONG, RIGHT, WRONG) for i in range(6)]
    setting.shard(0, [row for group in rows for row in group])
    together = setting.build()
    for number, group in enumerate(reversed(rows)):
        setting.shard(number, group)
    assert setting.build(output="apart") == together


def test_a_problem_in_two_shards_is_refused(setting: Setting) -> None:
    setting.problems([problem(0)])
    for number in range(2):
        setting.shard(number, samples_of(setting.tokenizer, "train-000000", RIGHT, WRONG))
    with pytest.raises(UserError, match="was there before"):
        setting.build()


@pytest.mark.parametrize("change", ["missing", "twice"])
def test_scores_that_do_not_match(setting: Setting, change: str) -> None:
    setting.problems([problem(0)])
    rows = samples_of(setting.tokenizer, "train-000000", RIGHT, WRONG)
    setting.shard(0, rows)
    if change == "missing":
        path = setting.root / "scores" / "generations-00000.parquet"
        write_rows(path, read_rows(path, Score)[:1], Score)
    else:
        write_rows(setting.root / "generations" / "generations-00000.parquet", [*rows, rows[0]], Sample)
    with pytest.raises(UserError, match=r"[23] samples and [12] scores of train-000000 that do not correspond"):
        setting.build()


def test_sft_rows(setting: Setting) -> None:
    setting.problems([problem(0), problem(1, solution=None), problem(2, solution="3" * 70), problem(3)])
    rows, counts = setting.build(method="sft")
    assert [row.pair_id for row in rows] == ["train-000000/000", "train-000003/000"]
    assert rows[0] == Pair(
        pair_id="train-000000/000",
        prompt_id="train-000000",
        prompt="3+4:",
        chosen=RIGHT,
        rejected="",
        prompt_ids=setting.tokenizer.encode_prompt("3+4:"),
        chosen_ids=setting.tokenizer.encode_completion(RIGHT),
        rejected_ids=(),
        chosen_sample=GOLD_SAMPLE,
        rejected_sample=-1,
        held_out=False,
    )
    assert counts == {
        "problems": 4,
        "problems_paired": 3,
        "problems_without_gold": 1,
        "gold_winners": 3,
        "pairs_too_long": 1,
        "pairs": 2,
    }
