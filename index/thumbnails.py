"""Small pictures of a shard in one file, found by offsets; knows nothing of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.shards import Shards
from index.slices import SliceStore, write_slices

__all__ = ["ThumbnailStore", "write_thumbnails"]

_FOLDER = "thumbnails"
_FILE = "pictures.jpegs"


def write_thumbnails(folder: Path, thumbnails: Sequence[bytes]) -> None:
    """Write one JPEG per row under `folder`/thumbnails; an empty one for a quarantined row."""
    target = folder / _FOLDER
    target.mkdir()
    write_slices(target / _FILE, thumbnails)


class ThumbnailStore:
    """Reads thumbnails of all shards, memory-mapped."""

    def __init__(self, shards: Shards) -> None:
        """Open the thumbnails of the shards.

        Raises:
            ArtefactDamaged: the offsets of a shard do not fit its file.
        """
        self._shards = shards
        self._pictures = [SliceStore(shard.folder / _FOLDER / _FILE) for shard in shards]

    def thumbnail(self, row: int) -> bytes:
        """Return the JPEG of a row; empty for a quarantined one."""
        number, local = self._shards.find(row)
        return self._pictures[number].slice(local)
