"""Some rows of the shards of one index, copied into a shard of another; knows nothing of why the others stay behind.

What was measured of each row is copied bit for bit; what follows from the codes is made anew, as when a shard is
encoded. Memory is that of one shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from index.codes_store import count_dtype
from index.image_table import ImageTable, write_images
from index.image_vectors import EMBEDDINGS_FILE, RESIDUALS_FILE
from index.shard import write_turned
from index.shards import Shard, Shards
from index.thumbnails import ThumbnailStore, write_thumbnails
from phosphene.durable_files import save_array
from phosphene.errors import SchemaUnknown

__all__ = ["RowCopies"]

_CUT_COUNTS = "codes/cut_counts.npy"
_BY_ROW = (_CUT_COUNTS, EMBEDDINGS_FILE, RESIDUALS_FILE)
"""Arrays with one entry for each row."""
_BY_OFFSETS = {
    "codes/offsets.npy": ("codes/neuron_ids.npy", "codes/values.npy", "maps/counts.npy"),
    "maps/offsets.npy": ("maps/patches.npy", "maps/values.npy"),
}
"""Where each row begins, and the arrays in which it does."""
_MADE_ANEW = ("image_rows", "images.parquet", "postings", "record.json", "row_norms.npy", "thumbnails", "tops")
"""Files and folders that are written from the others, or row by row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Rows of one shard."""

    shard: Shard
    """The shard."""
    kept: Bool[np.ndarray, " rows"]
    """Which of its rows."""


class RowCopies:
    """The kept rows of an index, counted anew from 0."""

    def __init__(self, index: Path, shards: Shards, kept: Bool[np.ndarray, " rows"]) -> None:
        """Take what to copy from.

        Args:
            index: its folder, whose digests have been checked.
            shards: its shards.
            kept: rows to copy.

        Raises:
            SchemaUnknown: a shard holds a file that this version cannot copy rows of.
        """
        self._shards, self._kept = shards, kept
        self._images, self._thumbnails = ImageTable(index, shards), ThumbnailStore(shards)
        counts = [int(kept[shard.rows.start : shard.rows.stop].sum()) for shard in shards]
        self._bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        unknown = sorted({name for shard in shards for name in _names(shard.folder)} - _known())
        if unknown:
            raise SchemaUnknown(f"the shards of index {index.name!r} hold {unknown}, whose rows cannot be copied")

    @property
    def row_count(self) -> int:
        """Rows that are kept."""
        return int(self._bounds[-1])

    def write(self, folder: Path, start: int, stop: int) -> None:
        """Write the kept rows [start, stop) as a shard into an empty folder; the caller makes it durable."""
        parts = self._parts(start, stop)
        rows = [int(row) for part in parts for row in np.flatnonzero(part.kept) + part.shard.rows.start]
        records = [replace(self._images.record(row), row=start + place) for place, row in enumerate(rows)]
        write_images(folder, records)
        write_thumbnails(folder, [self._thumbnails.thumbnail(row) for row in rows])
        (folder / "codes").mkdir()
        for name in _BY_ROW:
            if (parts[0].shard.folder / name).exists():
                copied = np.concatenate([_load(part, name)[part.kept] for part in parts])
                save_array(folder / name, copied.astype(count_dtype(copied)) if name == _CUT_COUNTS else copied)
        if (parts[0].shard.folder / "maps").exists():
            (folder / "maps").mkdir()
        for offsets, names in _BY_OFFSETS.items():
            held = [name for name in (offsets, *names) if (parts[0].shard.folder / name).exists()]
            if offsets in held:
                _write_sliced(folder, parts, offsets, held[1:])
        digests = [record.sha256 for record in records]
        write_turned(folder, digests, neuron_count=self._shards.neuron_count)

    def _parts(self, start: int, stop: int) -> list[_Part]:
        parts: list[_Part] = []
        for number in range(len(self._shards)):
            first, last = int(self._bounds[number]), int(self._bounds[number + 1])
            if first < stop and start < last:
                shard = self._shards[number]
                rows = np.flatnonzero(self._kept[shard.rows.start : shard.rows.stop])
                kept = np.zeros(shard.codes.row_count, dtype=bool)
                kept[rows[max(start - first, 0) : stop - first]] = True
                parts.append(_Part(shard=shard, kept=kept))
        return parts


def _write_sliced(folder: Path, parts: Sequence[_Part], offsets: str, names: Sequence[str]) -> None:
    lengths = [np.diff(_load(part, offsets)) for part in parts]
    copied = np.concatenate([own[part.kept] for own, part in zip(lengths, parts, strict=True)])
    save_array(folder / offsets, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(copied)]))
    for name in names:
        pieces = [_load(part, name)[np.repeat(part.kept, own)] for own, part in zip(lengths, parts, strict=True)]
        save_array(folder / name, np.concatenate(pieces))


def _load(part: _Part, name: str) -> np.ndarray:
    # Not mapped: an array without entries cannot be, and a shard is small.
    array: np.ndarray = np.load(part.shard.folder / name, allow_pickle=False)
    return array


def _names(folder: Path) -> set[str]:
    """Return the files of a shard, those that are made anew by their folder."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.parts[0] if name.parts[0] in _MADE_ANEW else name.as_posix() for name in names}


def _known() -> set[str]:
    sliced = {name for offsets, names in _BY_OFFSETS.items() for name in (offsets, *names)}
    return {*_BY_ROW, *_MADE_ANEW} | sliced
