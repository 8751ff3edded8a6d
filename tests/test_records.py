"""Rows survive the way through Parquet exactly; a file that is not theirs is refused by name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.errors import UserError
from irpo_megatron.records import (
    Pair,
    Problem,
    ReferenceLogProb,
    Sample,
    Score,
    read_rows,
    row_count,
    schema_of,
    write_rows,
)

# The columns that other programs read, as (name, Arrow type, may be null).
COLUMNS: dict[type[Any], list[tuple[str, str, bool]]] = {
    Problem: [
        ("id", "string", False),
        ("question", "string", False),
        ("answer", "string", False),
        ("solution", "string", True),
        ("option_labels", "string*", False),
        ("option_texts", "string*", False),
    ],
    Sample: [
        ("prompt_id", "string", False),
        ("sample_index", "int64", False),
        ("seed", "int64", False),
        ("prompt", "string", False),
        ("prompt_ids", "int32*", False),
        ("completion", "string", False),
        ("completion_ids", "int32*", False),
        ("finish_reason", "string", False),
    ],
    Score: [
        ("prompt_id", "string", False),
        ("sample_index", "int64", False),
        ("answer", "string", True),
        ("correct", "bool", False),
        ("graded", "bool", False),
    ],
    Pair: [
        ("pair_id", "string", False),
        ("prompt_id", "string", False),
        ("prompt", "string", False),
        ("chosen", "string", False),
        ("rejected", "string", False),
        ("prompt_ids", "int32*", False),
        ("chosen_ids", "int32*", False),
        ("rejected_ids", "int32*", False),
        ("chosen_sample", "int64", False),
        ("rejected_sample", "int64", False),
        ("held_out", "bool", False),
    ],
    ReferenceLogProb: [("row_id", "string", False), ("log_prob", "double", False), ("tokens", "int64", False)],
}

TEXT = st.text(max_size=20) | st.sampled_from(["", "\n", "a\nb\r\n", "é ∑ 😀", "\x00", " \t", "null", "[1, 2]"])
IDS = st.lists(st.integers(0, 2**31 - 1) | st.just(0), max_size=5).map(tuple)
TEXTS = st.lists(TEXT, max_size=4).map(tuple)
INTS = st.integers(-(2**63), 2**63 - 1)

ROWS: dict[type[Any], st.SearchStrategy[Any]] = {
    Problem: st.builds(
        Problem,
        id=TEXT,
        question=TEXT,
        answer=TEXT,
        solution=st.none() | TEXT,
        option_labels=TEXTS,
        option_texts=TEXTS,
    ),
    Sample: st.builds(
        Sample,
        prompt_id=TEXT,
        sample_index=INTS,
        seed=INTS,
        prompt=TEXT,
        prompt_ids=IDS,
        completion=TEXT,
        completion_ids=IDS,
        finish_reason=st.sampled_from(["stop", "length"]),
    ),
    Score: st.builds(
        Score, prompt_id=TEXT, sample_index=INTS, answer=st.none() | TEXT, correct=st.booleans(), graded=st.booleans()
    ),
    Pair: st.builds(
        Pair,
        pair_id=TEXT,
        prompt_id=TEXT,
        prompt=TEXT,
        chosen=TEXT,
        rejected=TEXT,
        prompt_ids=IDS,
        chosen_ids=IDS,
        rejected_ids=IDS,
        chosen_sample=INTS,
        rejected_sample=INTS,
        held_out=st.booleans(),
    ),
    ReferenceLogProb: st.builds(ReferenceLogProb, row_id=TEXT, log_prob=st.floats(allow_nan=False), tokens=INTS),
}

row_types = pytest.mark.parametrize("row_type", COLUMNS, ids=lambda row_type: row_type.__name__)


def score(index: int) -> Score:
    return Score(prompt_id="p", sample_index=index, answer=None, correct=False)


@row_types
def test_schema(row_type: type[Any]) -> None:
    plain = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
    lists = {"string*": pa.list_(pa.string()), "int32*": pa.list_(pa.int32())}
    expected = [pa.field(name, (plain | lists)[kind], nullable) for name, kind, nullable in COLUMNS[row_type]]
    assert schema_of(row_type) == pa.schema(expected)


@row_types
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_round_trip(row_type: type[Any], data: st.DataObject) -> None:
    rows = data.draw(st.lists(ROWS[row_type], max_size=4))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, rows, row_type)
        assert read_rows(path, row_type) == rows
        # An independent reader sees the same values under the same names.
        assert [{k: _tuples(v) for k, v in row.items()} for row in pq.ParquetFile(path).read().to_pylist()] == [
            asdict(row) for row in rows
        ]


def _tuples(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def test_values_keep_their_types(tmp_path: Path) -> None:
    sample = Sample(
        prompt_id="p",
        sample_index=0,
        seed=2**63 - 1,
        prompt="",
        prompt_ids=(0,),
        completion="\n",
        completion_ids=(),
        finish_reason="length",
    )
    write_rows(tmp_path / "s.parquet", [sample], Sample)
    (read,) = read_rows(tmp_path / "s.parquet", Sample)
    assert (read.prompt_ids, read.completion_ids, read.seed) == ((0,), (), 9223372036854775807)
    assert {type(read.prompt_ids), type(read.completion_ids)} == {tuple}
    hash(read)  # frozen, with nothing mutable inside


def test_none_is_refused_where_the_schema_has_no_null(tmp_path: Path) -> None:
    broken = Score(prompt_id=None, sample_index=0, answer=None, correct=True)  # type: ignore[arg-type]
    with pytest.raises(pa.ArrowInvalid, match="non-nullable"):
        write_rows(tmp_path / "s.parquet", [broken], Score)
    assert list(tmp_path.glob("*.parquet")) == []


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for index in (2, 0, 10, 1):
        write_rows(tmp_path / f"shard-{index:05d}.parquet", [score(index), score(index + 100)], Score)
    (tmp_path / "counts.json").write_text("{}")
    (tmp_path / ".shard-00003.parquet.tmp").write_bytes(b"half")
    order = [row.sample_index for row in read_rows(tmp_path, Score)]
    assert order == [0, 100, 1, 101, 2, 102, 10, 110]


def test_a_folder_without_shards_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path, Score) == []


def test_a_path_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "prompt_id=x" / "k=1"
    folder.mkdir(parents=True)
    write_rows(folder / "s.parquet", [score(4)], Score)
    assert read_rows(folder, Score) == [score(4)]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / "gone.parquet", Score)
    assert str(tmp_path / "gone.parquet") in caught.value.seen
    assert caught.value.rule == "a shard of Score rows must be a readable Parquet file"
    assert caught.value.remedy == "delete the stage's directory so that it is computed again"


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_rows(path, [score(index) for index in range(50)], Score)
    whole = path.read_bytes()
    for length in {0, 1, 3, 4, 8, len(whole) // 3, len(whole) // 2, len(whole) - 8, len(whole) - 4, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="readable Parquet file"):
            read_rows(path, Score)


def test_rows_are_counted_unread(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_rows(path, [score(0), score(1)], Score)
    assert row_count(path, Score) == 2
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="a shard of Score rows must be a readable Parquet file"):
        row_count(path, Score)


def test_one_bad_shard_is_named_among_good_ones(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [score(0)], Score)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path, Score)
    assert "b.parquet" in caught.value.seen


@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        ({"prompt_id": ["p"]}, "prompt_id (string)"),
        (
            {"sample_index": [1], "prompt_id": ["p"], "answer": ["1"], "correct": [True]},
            "sample_index (int64), prompt_id (string), answer (string), correct (bool)",
        ),
        (
            {"prompt_id": ["p"], "sample_index": [1], "answer": ["1"], "correct": [True], "extra": [1]},
            "prompt_id (string), sample_index (int64), answer (string), correct (bool), extra (int64)",
        ),
        (
            {"prompt_id": ["p"], "sample_index": [1], "answer": [["1"]], "correct": [1.0]},
            "prompt_id (string), sample_index (int64), answer (list of string), correct (double)",
        ),
    ],
    ids=["missing", "order", "extra", "types"],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, Any], seen: str) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError) as caught:
        read_rows(path, Score)
    assert caught.value.seen == f"{path} has the columns {seen}"
    expected = "prompt_id (string), sample_index (int64), answer (string), correct (bool), graded (bool)"
    assert caught.value.rule == f"Score rows have the columns {expected}"
    assert "another version: delete the stage's directory" in caught.value.remedy


def test_rows_of_another_type_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "s.parquet", [score(0)], Score)
    for other in (Problem, Sample, Pair, ReferenceLogProb):
        with pytest.raises(UserError, match=f"{other.__name__} rows have the columns"):
            read_rows(tmp_path / "s.parquet", other)


def test_a_killed_writer_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def half(table: pa.Table, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"PAR1 half a shard")
        raise KilledError

    path = tmp_path / "s.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", half)
        with pytest.raises(KilledError):
            write_rows(path, [score(0)], Score)
    assert not path.exists()
    assert read_rows(tmp_path, Score) == []
    write_rows(path, [score(1)], Score)  # the next attempt is not hindered by the leftover
    assert [file.name for file in tmp_path.iterdir()] == ["s.parquet"]
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", half)
        with pytest.raises(KilledError):
            write_rows(path, [score(2)], Score)
    assert read_rows(tmp_path, Score) == [score(1)]


def test_rows_can_come_from_a_generator(tmp_path: Path) -> None:
    write_rows(tmp_path / "s.parquet", (score(index) for index in range(3)), Score)
    assert [row.sample_index for row in read_rows(tmp_path, Score)] == [0, 1, 2]


@row_types
def test_rows_are_frozen_and_take_names_only(row_type: type[Any]) -> None:
    names = [name for name, _, _ in COLUMNS[row_type]]
    with pytest.raises(TypeError):
        row_type(*range(len(names)))
    row = row_type(**{name: 0 for name in names})
    with pytest.raises(AttributeError):
        setattr(row, names[0], 1)
