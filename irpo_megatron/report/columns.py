"""Some columns and rows of Parquet shards.

`read_rows` would build every row with its token ids: gigabytes for a real run, to show some dozens of completions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError
from irpo_megatron.records import schema_of


def first_ids(shards: Sequence[Path], row_type: type[Any], column: str, count: int) -> list[str]:
    """The first `count` different values of a column in their sorting order."""
    found: set[str] = set()
    for shard in shards:
        found = set(sorted(found.union(pc.unique(_read(shard, row_type, [column])[column]).to_pylist()))[:count])
    return sorted(found)


def rows_of(
    shards: Sequence[Path], row_type: type[Any], columns: Sequence[str], key: str, wanted: Collection[str]
) -> Iterator[Json]:
    """Some columns of the rows whose `key` is among `wanted`."""
    for shard in shards if wanted else ():
        yield from _read(shard, row_type, columns, filters=[(key, "in", list(wanted))]).to_pylist()


def list_lengths(shards: Sequence[Path], row_type: type[Any], column: str) -> int:
    """The lengths of a column's lists, added up."""
    return sum(
        int(pc.sum(pc.list_value_length(_read(shard, row_type, [column])[column])).as_py() or 0) for shard in shards
    )


def total(shards: Sequence[Path], row_type: type[Any], column: str) -> int:
    """A column of whole numbers, added up."""
    return sum(int(pc.sum(_read(shard, row_type, [column])[column]).as_py() or 0) for shard in shards)


def _read(
    shard: Path, row_type: type[Any], columns: Sequence[str], filters: list[tuple[str, str, list[str]]] | None = None
) -> pa.Table:
    try:
        names = pq.read_schema(shard).names
        if names == schema_of(row_type).names:
            return pq.read_table(shard, columns=list(columns), filters=filters)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{shard}: {error}",
            f"a shard of {row_type.__name__} rows must be a readable Parquet file",
            "delete the stage's directory so that it is computed again",
        ) from error
    raise UserError(
        f"{shard} has the columns {', '.join(names)}",
        f"{row_type.__name__} rows have the columns {', '.join(schema_of(row_type).names)}",
        "the file comes from another version: delete the stage's directory so that it is computed again",
    )
