"""Writes a one-dimensional `.npy` file piece by piece, so that it need not fit into memory; the same as `np.save`'s."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

__all__ = ["ArrayStream"]


class ArrayStream:
    """One `.npy` file that grows; a context manager that completes it."""

    dtype: np.dtype[np.generic]
    """Of its elements."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        """Create the file, as yet of no elements."""
        self.dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self._count = 0
        self._write_header()

    def __enter__(self) -> ArrayStream:
        """Return the stream."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how many elements there are, and close the file."""
        # The format leaves room in the header for a longer count, so that it has one length.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def append(self, part: np.ndarray) -> None:
        """Write further elements; `part` has one axis and the stream's dtype."""
        assert part.dtype == self.dtype, "elements have the dtype of their file"
        self._file.write(part.tobytes())
        self._count += len(part)

    def _write_header(self) -> None:
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self._count,)}
        npy.write_array_header_1_0(self._file, header)
