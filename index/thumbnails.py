"""Small pictures of a corpus in one file, found by offsets; knows nothing of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from index.arrays import map_array
from phosphene.errors import ArtefactDamaged

__all__ = ["ThumbnailStore", "concatenate_thumbnails", "write_thumbnails"]

_FOLDER = "thumbnails"
_COPY_BYTES = 1 << 22


def write_thumbnails(folder: Path, thumbnails: Sequence[bytes]) -> None:
    """Write one JPEG per row under `folder`/thumbnails; an empty one for a quarantined row."""
    target = folder / _FOLDER
    target.mkdir()
    offsets = np.zeros(len(thumbnails) + 1, dtype=np.int64)
    np.cumsum([len(thumbnail) for thumbnail in thumbnails], out=offsets[1:])
    (target / "pictures.jpegs").write_bytes(b"".join(thumbnails))
    np.save(target / "offsets.npy", offsets)


def concatenate_thumbnails(folder: Path, parts: Sequence[Path]) -> None:
    """Join the thumbnails of shards, in order; memory does not grow with the corpus."""
    target = folder / _FOLDER
    target.mkdir()
    ends: list[Int64[np.ndarray, " rows"]] = [np.zeros(1, dtype=np.int64)]
    end = 0
    with (target / "pictures.jpegs").open("wb") as out:
        for part in parts:
            offsets = map_array(part / _FOLDER / "offsets.npy", np.int64, 1)
            ends.append(offsets[1:] + end)
            end += int(offsets[-1])
            with (part / _FOLDER / "pictures.jpegs").open("rb") as source:
                while block := source.read(_COPY_BYTES):
                    out.write(block)
    np.save(target / "offsets.npy", np.concatenate(ends))


class ThumbnailStore:
    """Reads thumbnails, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Open the thumbnails under `folder`/thumbnails.

        Raises:
            ArtefactDamaged: the offsets do not fit the file.
        """
        source = folder / _FOLDER
        self._offsets: Int64[np.ndarray, " rows_and_one"] = map_array(source / "offsets.npy", np.int64, 1)
        size_bytes = (source / "pictures.jpegs").stat().st_size
        if int(self._offsets[-1]) != size_bytes:
            raise ArtefactDamaged(
                f"{source}: offsets.npy ends at {int(self._offsets[-1])} B; pictures.jpegs has {size_bytes} B: "
                "build the index again"
            )
        # An empty file cannot be memory-mapped.
        self._pictures = (
            np.memmap(source / "pictures.jpegs", dtype=np.uint8, mode="r") if size_bytes else np.zeros(0, np.uint8)
        )

    def thumbnail(self, row: int) -> bytes:
        """Return the JPEG of a row; empty for a quarantined one."""
        return bytes(self._pictures[int(self._offsets[row]) : int(self._offsets[row + 1])])
