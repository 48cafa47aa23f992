"""Maps a stored array into memory, read-only, never unpickling; knows nothing of what the numbers mean."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np

from phosphene.errors import ArtefactDamaged

__all__ = ["map_array"]

_UNREADABLE = (ValueError, SyntaxError, TokenError)
"""What NumPy raises at a file that is no array: a header is a Python literal to it."""


def map_array(path: Path, dtype: type[np.generic] | tuple[type[np.generic], ...], dimensions: int) -> np.ndarray:
    """Map a `.npy` file.

    Args:
        path: the file.
        dtype: what `docs/artefacts.md` says of it; one of several where it may be either.
        dimensions: number of axes it must have.

    Raises:
        ArtefactDamaged: it is no such array.
    """
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE:
        # A file without elements cannot be memory-mapped.
        array = _load_empty(path)
    dtypes = [np.dtype(allowed) for allowed in (dtype if isinstance(dtype, tuple) else (dtype,))]
    if array.dtype not in dtypes or array.ndim != dimensions:
        due = " or ".join(str(allowed) for allowed in dtypes)
        raise ArtefactDamaged(
            f"{path} holds {array.dtype} with {array.ndim} axes instead of {due} with {dimensions}: "
            "build the index again"
        )
    return array.view(np.ndarray)


def _load_empty(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except (*_UNREADABLE, MemoryError) as error:  # No elements need no memory: the header is wrong.
        raise ArtefactDamaged(f"{path} is not a NumPy array ({error}): build the index again") from error
    array.setflags(write=False)
    return array
