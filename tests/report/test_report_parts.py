"""The pieces below the page: thinning, column reading, wording, charts."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report.synthetic_run import RunBuilder

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem, Sample, write_rows
from irpo_megatron.report import wording
from irpo_megatron.report.columns import first_ids, list_lengths, rows_of
from irpo_megatron.report.curves import POINTS, curves_of
from irpo_megatron.report.line_chart import Axis, Line, line_chart
from irpo_megatron.report.paper import paper_results
from irpo_megatron.report.run_files import load_run
from irpo_megatron.report.svg import draw


def test_iterations_lie_end_to_end_with_a_gap(builder: RunBuilder) -> None:
    builder.training(1, steps=3)
    builder.training(2, steps=2)
    curves = curves_of(load_run(builder.directory).iterations)
    assert curves.starts == (0, 3)
    line = curves.line("margin")
    assert line is not None
    x, y = line
    assert (x[:3], x[4:]) == ([1, 2, 3], [4, 5])
    assert (y[:3], y[4:]) == ([0.1, 0.2, 0.3], [0.1, 0.2])
    assert math.isnan(x[3])
    assert math.isnan(y[3])


def test_a_long_run_is_thinned_to_means(builder: RunBuilder) -> None:
    builder.training(1, steps=2 * POINTS + 1)
    curves = curves_of(load_run(builder.directory).iterations)
    assert curves.steps_a_point == 3
    line = curves.line("margin")
    assert line is not None
    x, y = line
    assert len(x) == math.ceil((2 * POINTS + 1) / 3)
    assert x[:2] == [2, 5]
    assert y[:2] == pytest.approx([0.2, 0.5])


def test_a_metric_that_no_step_has(builder: RunBuilder) -> None:
    builder.method = "sft"
    builder.training(1)
    assert curves_of(load_run(builder.directory).iterations).line("margin") is None


def test_columns(tmp_path: Path, builder: RunBuilder) -> None:
    rows = builder.samples("train", 5, 2)
    shards = [tmp_path / "b.parquet", tmp_path / "a.parquet"]
    write_rows(shards[0], rows[:4], Sample)
    write_rows(shards[1], rows[4:], Sample)
    assert first_ids(shards, Sample, "prompt_id", 3) == ["train-000000", "train-000001", "train-000002"]
    assert list_lengths(shards, Sample, "completion_ids") == 30
    assert list(rows_of(shards, Sample, ("prompt_id", "sample_index"), "prompt_id", ["train-000003"])) == [
        {"prompt_id": "train-000003", "sample_index": 0},
        {"prompt_id": "train-000003", "sample_index": 1},
    ]
    assert list(rows_of(shards, Sample, ("prompt_id",), "prompt_id", [])) == []


def test_an_empty_shard_has_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    write_rows(path, [], Sample)
    assert list_lengths([path], Sample, "completion_ids") == 0
    assert first_ids([path], Sample, "prompt_id", 3) == []


def test_a_shard_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match="Problem rows have the columns id, question"):
        first_ids([path], Problem, "id", 1)


def test_a_shard_that_is_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="must be a readable Parquet file"):
        first_ids([path], Problem, "id", 1)


def test_the_paper_has_no_demo_task() -> None:
    assert paper_results("arithmetic") is None
    gsm8k = paper_results("gsm8k")
    assert gsm8k is not None
    assert [gsm8k.accuracy[i] for i in range(5)] == [55.6, 73.1, 78.0, 81.1, 81.6]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\u2013"),
        (4.24, "4.2 s"),
        (60, "1 min 0 s"),
        (725.4, "12 min 5 s"),
        (3599.6, "1 h 0 min"),
        (11520, "3 h 12 min"),
        (10**7, "2,777 h 47 min"),
    ],
)
def test_duration(seconds: float | None, words: str) -> None:
    assert wording.duration(seconds) == words


def test_numbers() -> None:
    assert wording.points(-0.012) == "\u22121.2"
    assert wording.number(-1.234, digits=2) == "\u22121.23"
    assert wording.signed(None, digits=1) == "\u2013"
    assert wording.interval(None) == "\u2013"
    assert wording.count(1234567) == "1,234,567"
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"


def test_ids_of_two_charts_do_not_meet() -> None:
    line = Line(label="l", hue="blue", x=[0, 1], y=[0, 1], marker="o")
    axis = Axis(x_label="x", y_label="y")
    charts = [line_chart(name, "t", axis, [line]) for name in ("a", "b")]
    ids = [set(part.split('"')[0] for part in chart.split('id="')[1:]) for chart in charts]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_chart_escapes_its_title() -> None:
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in draw("n", 'a "b" <c>', 100, lambda axes: None)
