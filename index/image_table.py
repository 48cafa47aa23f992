"""The rows of a corpus as the index knows them, good ones and quarantined ones; and the way from a digest to a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt64

from index.arrays import map_array
from index.tables import read_table, write_table
from index.values import ImageRow
from phosphene.errors import ArtefactDamaged

__all__ = ["ImageRecord", "ImageTable", "concatenate_images", "read_quarantined", "write_images"]

_FILE = "images.parquet"
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
        pa.field("fvu", pa.float32()),
        pa.field("quarantine_reason", pa.string()),
    ]
)


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
    fvu: float | None
    """Share of the residual's variance that the code does not explain; None for a quarantined image."""
    quarantine_reason: str | None
    """Why the image could not be used; None for a good one."""


def write_images(folder: Path, records: Sequence[ImageRecord]) -> None:
    """Write the rows of a shard, in order, as `images.parquet`."""
    write_table(folder / _FILE, _SCHEMA, [[asdict(record) for record in records]])


def concatenate_images(folder: Path, parts: Sequence[Path]) -> None:
    """Join the rows of shards, in order, and write the digests beside them."""
    write_table(folder / _FILE, _SCHEMA, (read_table(part / _FILE, _SCHEMA).to_pylist() for part in parts))
    table = read_table(folder / _FILE, _SCHEMA)
    keys, rows = [], []
    for row, (digest, reason) in enumerate(
        zip(table["sha256"].to_pylist(), table["quarantine_reason"].to_pylist(), strict=True)
    ):
        if reason is None:
            keys.append(_key(digest))
            rows.append(row)
    order = np.argsort(np.array(keys, dtype=np.uint64), kind="stable")
    target = folder / _FOLDER
    target.mkdir()
    np.save(target / "keys.npy", np.array(keys, dtype=np.uint64)[order])
    np.save(target / "rows.npy", np.array(rows, dtype=np.int64)[order])


def read_quarantined(folder: Path) -> list[tuple[str, str]]:
    """Return (uri, reason) of each quarantined row of a shard or an index."""
    table = read_table(folder / _FILE, _SCHEMA)
    pairs = zip(table["uri"].to_pylist(), table["quarantine_reason"].to_pylist(), strict=True)
    return [(uri, reason) for uri, reason in pairs if reason is not None]


def _key(digest: str) -> int:
    return int(digest[:16], 16)


class ImageTable:
    """The rows of a corpus."""

    readable: Bool[np.ndarray, " rows"]
    """Rows that are not quarantined."""

    def __init__(self, folder: Path) -> None:
        """Read `images.parquet` and map the digests.

        Raises:
            ArtefactDamaged: a file is not what it should be.
        """
        self._table = read_table(folder / _FILE, _SCHEMA)
        self.readable = np.array(self._table["quarantine_reason"].is_null().to_numpy(zero_copy_only=False), dtype=bool)
        self._keys: UInt64[np.ndarray, " readable"] = map_array(folder / _FOLDER / "keys.npy", np.uint64, 1)
        self._rows: Int64[np.ndarray, " readable"] = map_array(folder / _FOLDER / "rows.npy", np.int64, 1)
        if not len(self._keys) == len(self._rows) == int(self.readable.sum()):
            raise ArtefactDamaged(
                f"{folder / _FOLDER} names {len(self._keys)} images; {_FILE} has {int(self.readable.sum())} readable "
                "ones: build the index again"
            )

    @property
    def row_count(self) -> int:
        """Rows of the corpus, quarantined ones included."""
        return int(self._table.num_rows)

    def image(self, row: int) -> ImageRow:
        """Return a row (0 <= row < row_count)."""
        names = ("row", "uri", "sha256", "label", "caption", "width", "height", "quarantine_reason")
        return ImageRow(**{name: self._table[name][row].as_py() for name in names})

    def fvu(self, row: int) -> float | None:
        """Return the share of the residual's variance that the code does not explain; None for a quarantined row."""
        fvu: float | None = self._table["fvu"][row].as_py()
        return fvu

    def row_of(self, sha256: str) -> int | None:
        """Return the first readable row whose bytes have this digest (64 hexadecimal digits), or None."""
        key = np.uint64(_key(sha256))
        place = int(np.searchsorted(self._keys, key))
        while place < len(self._keys) and self._keys[place] == key:
            row = int(self._rows[place])
            if self._table["sha256"][row].as_py() == sha256:
                return row
            place += 1
        return None

    def column(self, name: str) -> list[str | None]:
        """Return a text column (`uri`, `sha256`, `label`, `caption` or `quarantine_reason`) over all rows."""
        values: list[str | None] = self._table[name].to_pylist()
        return values
