"""Records from the files people have: JSON Lines, JSON and Parquet, single or in a folder, or a Hub data set.

Files are untrusted: they are parsed as data only. Each record knows where it came from, so that a complaint names the
file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from irpo_megatron.errors import UserError
from irpo_megatron.tasks.hub import HUB_PREFIX, rows_from_hub


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data set and its place, such as `train.jsonl:17`."""

    where: str
    values: Mapping[str, object]

    @classmethod
    def of(cls, where: str, content: object) -> Record:
        """The content of that place as a record.

        Raises:
            UserError: the content is no JSON object.
        """
        if not isinstance(content, dict):
            raise UserError(
                f"{where} holds a {type(content).__name__}",
                'a record is a JSON object such as {"question": ..., "answer": ...}',
                "correct the record, or point at the right file",
            )
        return cls(where, content)

    def value(self, column: str) -> object:
        """A column as it is.

        Raises:
            UserError: the column is missing or null.
        """
        value = self.values.get(column)
        if value is None:
            raise UserError(
                f"{self.where} has no {column!r}; it has the columns {', '.join(map(repr, self.values)) or '(none)'}",
                f"every record needs a {column!r}",
                "rename the column, correct the record, or point at the right file",
            )
        return value

    def text(self, column: str) -> str:
        """A column as text, without white space at its ends; a number counts as its digits.

        Raises:
            UserError: the column is missing, or holds neither text nor a number.
        """
        return self._as_text(column, self.value(column))

    def optional_text(self, column: str) -> str | None:
        """As `text`, but None where the column is missing or null."""
        return None if self.values.get(column) is None else self.text(column)

    def items(self, column: str) -> list[object]:
        """A column that is a list.

        Raises:
            UserError: the column is missing or holds no list.
        """
        value = self.value(column)
        if not isinstance(value, list):
            raise self._wrong_type(column, value, "a list")
        return value

    def texts(self, column: str) -> list[str]:
        """A column that is a list, each item as `text` gives it."""
        return [self._as_text(column, item) for item in self.items(column)]

    def _as_text(self, column: str, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong_type(column, value, "text or a number")
        return str(value).strip()

    def _wrong_type(self, column: str, value: object, expected: str) -> UserError:
        return UserError(
            f"{self.where} has a {type(value).__name__} in {column!r}",
            f"{column!r} holds {expected}",
            "correct the record, or point at the right file",
        )


def read_records(source: str, *, split: str) -> list[Record]:
    """The records of a `.jsonl`, `.json` or `.parquet` file, of all such files below a folder in the order of their
    paths, or of `hub:owner/name[:config][:split]`, whose split is `split` unless it names one.

    Raises:
        UserError: nothing is there, or what is there is malformed, of another kind, or empty.
    """
    if source.startswith(HUB_PREFIX):
        records = list(_numbered(f"{source} row ", rows_from_hub(source, split=split)))
    else:
        records = list(_records_from_disk(Path(source)))
    if not records:
        raise UserError(f"{source} has no records", "a data set needs at least one", "point at a file with data")
    return records


def _records_from_disk(source: Path) -> Iterator[Record]:
    for path in _files(source):
        try:
            yield from _READERS[path.suffix](path)
        except OSError as error:
            raise UserError(f"{path}: {error}", "a source must be readable", "correct its permissions") from error


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if path.suffix in _READERS and path.is_file())
    if not source.is_file():
        raise UserError(
            f"{source} does not exist",
            f"a source is a file ({_SUFFIXES}), a folder of such files, or {HUB_PREFIX}owner/name",
            "correct the path",
        )
    if source.suffix not in _READERS:
        raise UserError(f"{source} ends in {source.suffix!r}", f"a file ends in {_SUFFIXES}", "convert or rename it")
    return [source]


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield Record.of(where, _parse_json(where, line))


def _read_json(path: Path) -> Iterator[Record]:
    """A list of records, or one record: MATH's original release has one file a problem."""
    content = _parse_json(str(path), path.read_bytes())
    if isinstance(content, list):
        return _numbered(f"{path} item ", content)
    return iter([Record.of(str(path), content)])


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: {error}", "the file must be readable Parquet", "download or write it again"
        ) from error
    return _numbered(f"{path} row ", rows)


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
_SUFFIXES = ", ".join(_READERS)


def _numbered(prefix: str, rows: Iterable[object]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        yield Record.of(f"{prefix}{number}", row)


def _parse_json(where: str, data: bytes) -> object:
    try:
        parsed: object = json.loads(data.decode("utf-8-sig"))
    # RecursionError: thousands of nested brackets; ValueError includes bad UTF-8 and integers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {error}", "it must be JSON in UTF-8", "correct it, or download it again") from error
    return parsed
