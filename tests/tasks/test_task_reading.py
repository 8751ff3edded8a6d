"""Records from files, folders and the Hub, and what is said about bad ones."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.tasks.reading import Record, read_records

ROWS = [{"question": "a", "answer": "1"}, {"question": "b\u2028", "answer": "2"}]


def values(source: Path | str) -> list[Any]:
    return [record.values for record in read_records(str(source), split="train")]


def test_json_lines_with_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text(f"{lines[0]}\n\n{lines[1]}\r\n", encoding="utf-8-sig")
    records = read_records(str(path), split="train")
    assert [record.values for record in records] == ROWS
    assert [record.where for record in records] == [f"{path}:1", f"{path}:3"]


def test_json_list_and_single_object(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0]))
    assert values(tmp_path / "list.json") == ROWS
    assert values(tmp_path / "one.json") == ROWS[:1]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data.parquet")
    assert values(tmp_path / "data.parquet") == ROWS


def test_folder_reads_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/1.json", "a/2.json", "a/1.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"name": name}))
    (tmp_path / "README.md").write_text("not data")
    assert [row["name"] for row in values(tmp_path)] == ["a/1.json", "a/2.json", "b/1.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"a": 1}\n{"a": \n', "d.jsonl:2: "),
        ("d.jsonl", b'{"a": "\xff"}\n', "d.jsonl:1: "),
        ("d.jsonl", b"[" * 100_000, "d.jsonl:1: "),
        ("d.jsonl", b"[1, 2]\n", "d.jsonl:1 holds a list"),
        ("d.jsonl", b"\n \n", "no records"),
        ("d.json", b"[]", "no records"),
        ("d.json", b"{", "d.json: "),
        ("d.json", b'["text"]', "item 0 holds a str"),
        ("d.json", b"3", "d.json holds a int"),
        ("d.parquet", b"PAR1 but no Parquet", "must be readable Parquet"),
        ("d.csv", b"a,b\n", "ends in '.csv'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_records(str(tmp_path / name), split="train")
    assert message in str(caught.value)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        read_records(str(tmp_path / "nowhere.jsonl"), split="train")
    with pytest.raises(UserError, match="no records"):
        read_records(str(tmp_path), split="train")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.json").write_text("{}")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        read_records(str(tmp_path / "d.json"), split="train")


def test_columns() -> None:
    record = Record("d.jsonl:7", {"text": " a ", "number": 72, "truth": True, "null": None, "list": ["a", 1]})
    assert record.text("text") == "a"
    assert record.text("number") == "72"
    assert record.optional_text("null") is None
    assert record.optional_text("absent") is None
    assert record.optional_text("text") == "a"
    assert record.texts("list") == ["a", "1"]
    with pytest.raises(UserError) as caught:
        record.text("answer")
    assert "d.jsonl:7 has no 'answer'; it has the columns 'text', 'number'" in str(caught.value)
    with pytest.raises(UserError, match="has no 'null'"):
        record.text("null")
    with pytest.raises(UserError, match="has a bool in 'truth'"):
        record.text("truth")
    with pytest.raises(UserError, match="has a list in 'list'"):
        record.optional_text("list")
    with pytest.raises(UserError, match="has a str in 'text'"):
        record.texts("text")
    with pytest.raises(UserError, match=r"columns \(none\)"):
        Record("d.jsonl:8", {}).value("a")


class FakeDatasets(types.ModuleType):
    """Stands for `datasets`: keeps the call, and gives rows or fails."""

    def __init__(self, result: list[Any] | Exception) -> None:
        super().__init__("datasets")
        self.result = result

    def load_dataset(self, name: str, config: str | None, **options: Any) -> list[Any]:
        self.call = (name, config, options["split"])
        assert options["trust_remote_code"] is False
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("hub:openai/gsm8k", ("openai/gsm8k", None, "train")),
        ("hub:openai/gsm8k:main", ("openai/gsm8k", "main", "train")),
        ("hub:openai/gsm8k:main:test", ("openai/gsm8k", "main", "test")),
        ("hub:openai/gsm8k::test[:10%]", None),
        ("hub:openai/gsm8k::test", ("openai/gsm8k", None, "test")),
        ("hub:gsm8k", None),
        ("hub:", None),
        ("hub:a/b:c:d:e", None),
    ],
)
def test_hub_sources(source: str, call: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets(ROWS)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    if call is None:
        with pytest.raises(UserError, match=r"hub:owner/name\[:config\]\[:split\]"):
            read_records(source, split="train")
    else:
        assert [record.where for record in read_records(source, split="train")] == [
            f"{source} row 0",
            f"{source} row 1",
        ]
        assert fake.call == call


def test_hub_failures_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets(ValueError('Unknown split "held_out"')))
    with pytest.raises(UserError, match="Unknown split"):
        read_records("hub:openai/gsm8k:main", split="held_out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"irpo-megatron\[hub\]"):
        read_records("hub:openai/gsm8k:main", split="train")


def test_the_real_package_takes_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network: a local folder stands for the Hub's repository."""
    pytest.importorskip("datasets")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert values("hub:owner/name") == ROWS
    with pytest.raises(UserError, match="split 'nothing'"):
        values("hub:owner/name::nothing")
