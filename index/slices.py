"""Pieces of bytes of different lengths in one file, found by offsets, memory-mapped; knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from index.arrays import map_array
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged

__all__ = ["SliceStore", "write_slices"]

_OFFSETS = "offsets.npy"
_BUFFER_BYTES = 1 << 20
"""Pieces have a few kilobytes; a call to the system for each would take as long as the bytes."""


def write_slices(path: Path, pieces: Sequence[bytes]) -> None:
    """Write the pieces one after the other, and beside them, in `offsets.npy`, where each begins."""
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    with path.open("wb", buffering=_BUFFER_BYTES) as file:
        file.writelines(pieces)
    save_array(path.with_name(_OFFSETS), offsets)


class SliceStore:
    """Reads pieces."""

    def __init__(self, path: Path) -> None:
        """Map the file and its offsets.

        Raises:
            ArtefactDamaged: the offsets do not fit the file.
        """
        self._offsets: Int64[np.ndarray, " pieces_and_one"] = map_array(path.with_name(_OFFSETS), np.int64, 1)
        size_bytes = path.stat().st_size
        if int(self._offsets[-1]) != size_bytes:
            raise ArtefactDamaged(
                f"{path.parent}: {_OFFSETS} ends at {int(self._offsets[-1])} B; {path.name} has {size_bytes} B: "
                "build the index again"
            )
        # An empty file cannot be memory-mapped.
        self._data = np.memmap(path, dtype=np.uint8, mode="r") if size_bytes else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        """Count the pieces."""
        return len(self._offsets) - 1

    def slice(self, place: int) -> bytes:
        """Return a piece."""
        return bytes(self._data[int(self._offsets[place]) : int(self._offsets[place + 1])])
