"""Parquet tables, written so that equal rows give equal bytes; knows nothing of what the columns mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from phosphene.errors import ArtefactDamaged

__all__ = ["read_column", "read_table", "write_columns", "write_table"]


# The version of the format is fixed, and Arrow's own schema stays out: both would change with the library.
_OPTIONS = {"version": "2.6", "compression": "zstd", "compression_level": 3, "store_schema": False}


def write_table(path: Path, schema: pa.Schema, groups: Iterable[list[dict[str, object]]]) -> None:
    """Write rows, one row group after the other; memory holds one group.

    Args:
        path: the file.
        schema: names and types of the columns.
        groups: rows as dictionaries by column name.
    """
    with pq.ParquetWriter(path, schema, **_OPTIONS) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def write_columns(path: Path, schema: pa.Schema, columns: Iterable[Sequence[object]]) -> None:
    """Write one row group, column by column in the order of the schema: the bytes that `write_table` writes."""
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    with pq.ParquetWriter(path, schema, **_OPTIONS) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a whole table, its columns in one piece each.

    Raises:
        ArtefactDamaged: it does not parse, or its columns are others.
    """
    try:
        table = pq.read_table(path, memory_map=True).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise ArtefactDamaged(f"{path} is not a Parquet table ({error}): build the index again") from error
    if table.schema.names != schema.names:
        raise ArtefactDamaged(
            f"{path} has the columns {table.schema.names} instead of {schema.names}: build the index again"
        )
    return table.cast(schema)


def read_column(path: Path, name: str) -> pa.Array:
    """Read one column of a table, in one piece.

    Raises:
        ArtefactDamaged: it does not parse, or has no such column.
    """
    try:
        column: pa.ChunkedArray = pq.read_table(path, columns=[name], memory_map=True)[name]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtefactDamaged(f"{path} is no Parquet table with {name!r} ({error}): build the index again") from error
    return column.combine_chunks()
