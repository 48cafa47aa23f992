"""Writes a FAISS index to a file, whole or with an error; knows nothing of what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss

__all__ = ["save_faiss"]


def save_faiss(path: Path, index: Any) -> None:
    """Write the bytes that `faiss.write_index` writes.

    FAISS itself does not tell of what fails when a file is closed: on a full disk it leaves the last part of an index
    out, and all seems well.

    Raises:
        OSError: the file could not be written whole; names it.
    """
    try:
        with path.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
