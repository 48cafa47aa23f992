"""The rows of a corpus as the index knows them, good ones and quarantined ones; and the way from a digest to a row.

Each shard has its rows twice: `images.parquet` by column, for people's tools and for the job, and `image_rows/` by row,
memory-mapped, for answers: a reader's memory does not grow with names, labels and captions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt64

from index.arrays import map_array
from index.shards import Shard, Shards
from index.slices import SliceStore, write_slices
from index.tables import read_column, read_table, write_columns
from index.values import ImageRow
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged

__all__ = ["ImageRecord", "ImageTable", "read_quarantined", "write_digests", "write_images"]

_FILE = "images.parquet"
_ROWS_FOLDER = "image_rows"
_ROWS_FILE = "records.jsonl"
_FOLDER = "digests"
_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("byte_count", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("extra", pa.string()),
        pa.field("fvu", pa.float32()),
        pa.field("quarantine_reason", pa.string()),
    ]
)


_fields = attrgetter(*_SCHEMA.names)


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One row of `images.parquet`."""

    row: int
    """Corpus row, 0-based."""
    uri: str
    """As the corpus names it."""
    sha256: str
    """Of the image's bytes, hexadecimal; empty where they could not be read."""
    byte_count: int
    """Length of the image's file; 0 where it could not be read."""
    width: int
    """In pixels after orientation; 0 for a quarantined image."""
    height: int
    """In pixels after orientation; 0 for a quarantined image."""
    label: str | None
    """The corpus's label."""
    caption: str | None
    """The corpus's caption."""
    extra: str | None
    """Further columns of the corpus's list as a JSON object; None where it has none."""
    fvu: float | None
    """Share of the residual's variance that the code does not explain; None for a quarantined image."""
    quarantine_reason: str | None
    """Why the image could not be used; None for a good one."""


def write_images(folder: Path, records: Sequence[ImageRecord]) -> None:
    """Write the rows of a shard, in order, by column and by row."""
    columns = [[getattr(record, name) for record in records] for name in _SCHEMA.names]
    write_columns(folder / _FILE, _SCHEMA, columns)
    target = folder / _ROWS_FOLDER
    target.mkdir()
    write_slices(target / _ROWS_FILE, [_line(record) for record in records])


def _line(record: ImageRecord) -> bytes:
    """Return a row as canonical JSON, in a quarter of the time of `canonical_json`: there are millions of them."""
    return ("[" + ",".join([_scalar(value) for value in _fields(record)]) + "]\n").encode()


def _scalar(value: str | int | float | None) -> str:
    if value is None:
        return "null"
    return encode_basestring(value) if isinstance(value, str) else repr(value)


def read_quarantined(folder: Path) -> list[tuple[int, str, str]]:
    """Return (row, uri, reason) of each quarantined row of a shard."""
    table = read_table(folder / _FILE, _SCHEMA)
    columns = (table[name].to_pylist() for name in ("row", "uri", "quarantine_reason"))
    return [(row, uri, reason) for row, uri, reason in zip(*columns, strict=True) if reason is not None]


def write_digests(folder: Path, shards: Shards) -> None:
    """Write under `folder`/digests which row has which bytes: the way from a digest to a readable row.

    Args:
        folder: the index being written.
        shards: its shards.
    """
    keys, rows = _by_digest(shards)
    target = folder / _FOLDER
    target.mkdir()
    save_array(target / "keys.npy", keys)
    save_array(target / "rows.npy", rows)


def _by_digest(shards: Shards) -> tuple[UInt64[np.ndarray, " readable"], Int64[np.ndarray, " readable"]]:
    """Return the key and the row of every readable row, ascending by key, then row."""
    keys: list[UInt64[np.ndarray, " readable"]] = []
    rows: list[Int64[np.ndarray, " readable"]] = []
    for shard in shards:
        readable = read_column(shard.folder / _FILE, "quarantine_reason").is_null().to_numpy(zero_copy_only=False)
        digests = read_column(shard.folder / _FILE, "sha256").to_pylist()
        places = np.flatnonzero(readable)
        keys.append(np.array([_key(digests[place]) for place in places], dtype=np.uint64))
        rows.append(places + shard.rows.start)
    all_keys, all_rows = np.concatenate(keys), np.concatenate(rows)
    order = np.argsort(all_keys, kind="stable")
    return all_keys[order], all_rows[order].astype(np.int64)


def _key(digest: str) -> int:
    return int(digest[:16], 16)


class ImageTable:
    """The rows of a corpus."""

    readable: Bool[np.ndarray, " rows"]
    """Rows that are not quarantined."""

    def __init__(self, folder: Path, shards: Shards) -> None:
        """Map the rows of the shards, and the digests under `folder`.

        Raises:
            ArtefactDamaged: a file is not what it should be.
        """
        self._shards = shards
        self._records = [SliceStore(shard.folder / _ROWS_FOLDER / _ROWS_FILE) for shard in shards]
        self.readable = np.concatenate([_readable(shard.folder) for shard in shards])
        self._keys: UInt64[np.ndarray, " readable"] = map_array(folder / _FOLDER / "keys.npy", np.uint64, 1)
        self._rows: Int64[np.ndarray, " readable"] = map_array(folder / _FOLDER / "rows.npy", np.int64, 1)
        record_count = sum(len(records) for records in self._records)
        if not shards.row_count == record_count == len(self.readable):
            raise ArtefactDamaged(
                f"{folder}: due are {shards.row_count} rows; {_ROWS_FOLDER}/ has {record_count}, {_FILE} "
                f"{len(self.readable)}: build the index again"
            )
        if not len(self._keys) == len(self._rows) == int(self.readable.sum()):
            raise ArtefactDamaged(
                f"{folder / _FOLDER} names {len(self._keys)} images; {_FILE} has {int(self.readable.sum())} readable "
                "ones: build the index again"
            )

    @property
    def row_count(self) -> int:
        """Rows of the corpus, quarantined ones included."""
        return len(self.readable)

    def image(self, row: int) -> ImageRow:
        """Return a row (0 <= row < row_count)."""
        record = self._record(row)
        names = ("row", "uri", "sha256", "label", "caption", "width", "height", "quarantine_reason")
        return ImageRow(**{name: record[name] for name in names})

    def record(self, row: int) -> ImageRecord:
        """Return all that is stored of a row (0 <= row < row_count)."""
        return ImageRecord(**self._record(row))

    def fvu(self, row: int) -> float | None:
        """Return the share of the residual's variance that the code does not explain; None for a quarantined row."""
        fvu: float | None = self._record(row)["fvu"]
        return fvu

    def rows_of(self, sha256: str) -> Iterator[int]:
        """Yield the readable rows whose bytes have this digest (64 hexadecimal digits), rising."""
        key = np.uint64(_key(sha256))
        place = int(np.searchsorted(self._keys, key))
        while place < len(self._keys) and self._keys[place] == key:
            row = int(self._rows[place])
            if self._record(row)["sha256"] == sha256:
                yield row
            place += 1

    def rows_with(self, digests: Collection[str]) -> Int64[np.ndarray, " found"]:
        """Return the rows, quarantined ones included, whose bytes have one of the digests, rising."""
        found = [row for digest in digests for row in self.rows_of(digest)]
        if digests:
            unusable = np.flatnonzero(~self.readable).tolist()
            found += [row for row in unusable if self._record(row)["sha256"] in digests]
        return np.array(sorted(found), dtype=np.int64)

    def first_rows(self) -> Bool[np.ndarray, " rows"]:
        """Tell for every row whether it is the first with its bytes; rows that could not be read are."""
        first = np.ones(self.row_count, dtype=bool)
        for start, stop in _runs(self._keys):
            seen: set[str] = set()
            for row in self._rows[start:stop]:
                digest = self._record(int(row))["sha256"]
                first[row] = digest not in seen
                seen.add(digest)
        return first

    def names_every_image(self) -> bool:
        """Tell whether `digests/` leads to every readable row, and to nothing else."""
        keys, rows = _by_digest(self._shards)
        return np.array_equal(keys, self._keys) and np.array_equal(rows, self._rows)

    def rows_that_differ(self, shard: Shard) -> list[int]:
        """Return the rows of a shard of which `images.parquet` says something else than `image_rows/`."""
        by_column = read_table(shard.folder / _FILE, _SCHEMA).to_pylist()
        rows = range(shard.rows.start, shard.rows.stop)
        return [row for row, record in zip(rows, by_column, strict=True) if not self._says(row, record)]

    def column(self, name: str) -> list[Any]:
        """Return a column over all rows, in memory: for the job, not for answers."""
        return [value for part in self.columns(name) for value in part]

    def columns(self, name: str) -> Iterator[list[Any]]:
        """Yield a column shard by shard."""
        for shard in self._shards:
            yield read_column(shard.folder / _FILE, name).to_pylist()

    def _says(self, row: int, record: dict[str, Any]) -> bool:
        try:
            return record == self._record(row) and record["row"] == row
        except ValueError:  # No JSON, or of another length.
            return False

    def _record(self, row: int) -> dict[str, Any]:
        number, local = self._shards.find(row)
        return dict(zip(_SCHEMA.names, json.loads(self._records[number].slice(local)), strict=True))


def _readable(folder: Path) -> Bool[np.ndarray, " rows"]:
    reasons = read_column(folder / _FILE, "quarantine_reason")
    return np.array(reasons.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _runs(keys: UInt64[np.ndarray, " readable"]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each run of two or more equal keys."""
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] ^ np.uint64(1)))
    for start, stop in zip(starts, np.append(starts[1:], len(keys)), strict=True):
        if stop - start > 1:
            yield int(start), int(stop)
