"""The problems stage: limits, held-out problems and contamination, each a function of the seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.artifacts import read_json
from irpo_megatron.config import DataConfig, SelectionConfig
from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import ProblemsRequest
from irpo_megatron.tasks.stage import draw, run, set_aside, shared

ANSWERS = {"1+1": "L", "2+2": "L", "3+3": "H", "4+4": "H"}


def make_request(output: Path, *, data: dict[str, Any], held_out: int | float, seed: int = 0) -> ProblemsRequest:
    output.mkdir(parents=True, exist_ok=True)
    sources = {"train": "generate:train:50", "test": "generate:test:20"}
    candidates = 1 if held_out == 0 else 4
    return ProblemsRequest(
        output=output,
        iteration=0,
        seed=seed,
        task="arithmetic",
        data=DataConfig.model_validate(sources | data),
        selection=SelectionConfig(held_out=held_out, candidates=candidates),
    )


def numbered(count: int) -> list[Problem]:
    return [Problem(id=f"train-{index:06d}", question=f"{index}+1", answer="L") for index in range(count)]


def read_splits(folder: Path) -> dict[str, list[Problem]]:
    return {name: read_rows(folder / f"{name}.parquet", Problem) for name in ("train", "held_out", "test")}


def test_the_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    run(make_request(tmp_path, data={}, held_out=10))
    splits = read_splits(tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 40, "held_out": 10, "test": 20}
    assert sorted(row.id for name in ("train", "held_out") for row in splits[name]) == [
        f"train-{index:06d}" for index in range(50)
    ]
    assert [row.id for row in splits["test"]] == [f"test-{index:06d}" for index in range(20)]
    assert read_json(tmp_path / "counts.json") == {"train": 40, "held_out": 10, "test": 20, "in_both": 0}


def test_limits_keep_the_order_of_the_data_and_count_before_holding_out(tmp_path: Path) -> None:
    run(make_request(tmp_path, data={"train_limit": 12, "test_limit": 5}, held_out=0.25))
    splits = read_splits(tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 9, "held_out": 3, "test": 5}
    for rows in splits.values():
        assert [row.id for row in rows] == sorted(row.id for row in rows)


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path: Path) -> None:
    run(make_request(tmp_path, data={}, held_out=0))
    splits = read_splits(tmp_path)
    assert (len(splits["train"]), splits["held_out"]) == (50, [])


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    chosen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(make_request(tmp_path / name, data={"train_limit": 20, "test_limit": 10}, held_out=5, seed=seed))
        chosen.append(read_splits(tmp_path / name))
    assert chosen[0] == chosen[1]
    for split in ("train", "held_out", "test"):
        assert chosen[0][split] != chosen[2][split]


def test_a_limit_above_the_data_takes_all() -> None:
    problems = numbered(3)
    assert draw(problems, 3, seed=0, split="train") == draw(problems, 99, seed=0, split="train") == problems


def test_a_small_share_holds_out_one_problem() -> None:
    train, held_out = set_aside(numbered(10), 0.01, seed=0)
    assert (len(train), len(held_out)) == (9, 1)


@pytest.mark.parametrize(("held_out", "count"), [(5, 5), (6, 5), (0.95, 5), (0.5, 1)])
def test_holding_out_everything_is_refused(held_out: int | float, count: int) -> None:
    with pytest.raises(UserError, match=rf"selection\.held_out = {held_out}, and data\.train has {count} problems"):
        set_aside(numbered(count), held_out, seed=0)


def test_contamination_is_counted_held_out_problems_included(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, questions in (("train", ["1+1", "2+2", "3+3"]), ("test", ["3+3", "2+2", "4+4", "1+1"])):
        rows = [{"question": question, "answer": ANSWERS[question]} for question in questions]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    run(make_request(tmp_path / "out", data=data, held_out=1))
    assert read_json(tmp_path / "out" / "counts.json")["in_both"] == 3
    assert "3 test problems are among the training problems" in caplog.text


def test_equal_questions_with_other_options_are_other_problems() -> None:
    def choice(*options: str) -> Problem:
        return Problem(id="x", question="Which one?", answer="A", option_texts=options)

    assert shared([choice("iron", "wood")], [choice("iron", "gold"), choice("iron", "wood")]) == 1


def test_errors_of_the_source_reach_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run(make_request(tmp_path, data={"train": str(tmp_path / "none.jsonl")}, held_out=1))
