"""The rows that travel between stages: small frozen types, stored as Parquet shards.

Each type is its own schema: `write_rows` derives the Parquet columns from the annotations, `read_rows` checks the
columns that it finds against them, so that a file of another version fails at once and by name.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from irpo_megatron.errors import UserError

Split = Literal["train", "held_out", "test"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its gold final answer.

    Example: `Problem(id="train-000017", question="What is 2 + 2?", answer="4", solution="2 + 2 = 4\\nFinal answer: 4")`
    """

    id: str
    """Unique over all splits of a run; seeds derive from it."""
    question: str
    answer: str
    """The gold final answer, as the task's `is_correct` takes it."""
    solution: str | None = None
    """The gold chain of thought in the prompt's own format, ending in `Final answer: ...`; None where none exists."""
    option_labels: tuple[str, ...] = ()
    """Multiple choice only: the labels in the prompt, `A` to `E`."""
    option_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion of one prompt, with the token ids that were sampled: training uses these ids as they are."""

    prompt_id: str
    sample_index: int
    seed: int
    """Derived from (run seed, iteration, prompt id, sample index); 0 where decoding was greedy."""
    prompt: str
    prompt_ids: tuple[int, ...]
    completion: str
    completion_ids: tuple[int, ...]
    """Includes the end token, or the tokens of the stop string, when `finish_reason` is `stop`."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The verdict on one sample."""

    prompt_id: str
    sample_index: int
    answer: str | None
    """None where no final answer was found, which counts as wrong."""
    correct: bool
    graded: bool = True
    """False where the grader ran out of time or memory or failed, which counts as wrong too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A winner and a loser of one prompt (`rejected` is empty for method `sft`, which has gold solutions only).

    The columns `prompt`, `chosen` and `rejected` are what `datasets` and TRL expect.
    """

    pair_id: str
    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_sample: int
    """Sample index of the winner; -1 is the gold solution."""
    rejected_sample: int
    """Sample index of the loser; -1 where there is none."""
    held_out: bool
    """True where the problem is held out for the choice of a checkpoint: used only when retraining."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLogProb:
    """log p_ref(completion | prompt), summed over the completion's tokens, in nats."""

    row_id: str
    """`row_id(prompt_ids, completion_ids)`: the same row in two pairs is computed once."""
    log_prob: float
    tokens: int


Row = TypeVar("Row", Problem, Sample, Score, Pair, ReferenceLogProb)

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    tuple[int, ...]: pa.list_(pa.int32()),
    tuple[str, ...]: pa.list_(pa.string()),
}


def schema_of(row_type: type[Any]) -> pa.Schema:
    """The Parquet schema of a row type; `X | None` becomes a nullable column, a `Literal` a string."""
    fields = []
    for name, annotation in typing.get_type_hints(row_type).items():
        nullable = isinstance(annotation, types.UnionType)
        if nullable:
            (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
        if typing.get_origin(annotation) is Literal:
            annotation = str
        fields.append(pa.field(name, _ARROW_TYPES[annotation], nullable=nullable))
    return pa.schema(fields)


def write_rows(path: Path, rows: Iterable[Row], row_type: type[Row]) -> None:
    """Write one Parquet shard; it appears whole or not at all."""
    names = [field.name for field in dataclasses.fields(row_type)]
    rows = list(rows)
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    table = pa.Table.from_pydict(columns, schema=schema_of(row_type))
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Read one shard, or every `*.parquet` of a folder in the order of their names.

    Raises:
        UserError: the file is missing, is no Parquet file, or its columns are not those of `row_type`.
    """
    return list(_iterate(path, row_type))


def row_count(shard: Path, row_type: type[Row]) -> int:
    """How many rows a shard holds, without reading them.

    Raises:
        UserError: the file is missing or is no Parquet file.
    """
    with _readable(shard, row_type):
        return int(pq.read_metadata(shard).num_rows)


def _iterate(path: Path, row_type: type[Row]) -> Iterator[Row]:
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    expected = schema_of(row_type)
    sequence_columns = [field.name for field in expected if pa.types.is_list(field.type)]
    for shard in shards:
        with _readable(shard, row_type):
            table = pq.read_table(shard)
        if _columns(table.schema) != _columns(expected):
            raise UserError(
                f"{shard} has the columns {_columns(table.schema)}",
                f"{row_type.__name__} rows have the columns {_columns(expected)}",
                "the file comes from another version: delete the stage's directory so that it is computed again",
            )
        for values in table.to_pylist():
            for name in sequence_columns:
                values[name] = tuple(values[name])
            yield row_type(**values)


@contextmanager
def _readable(shard: Path, row_type: type[Row]) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{shard}: {error}",
            f"a shard of {row_type.__name__} rows must be a readable Parquet file",
            "delete the stage's directory so that it is computed again",
        ) from error


def _columns(schema: pa.Schema) -> str:
    types = (f"list of {f.type.value_type}" if pa.types.is_list(f.type) else str(f.type) for f in schema)
    return ", ".join(f"{name} ({type_})" for name, type_ in zip(schema.names, types, strict=True))
