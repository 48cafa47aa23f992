"""The sha256 of every row's bytes, in 32 bytes a row: as text they would be most of what a job holds of a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import UInt8

from index.arrays import map_array
from phosphene.durable_files import save_array, sync_path
from phosphene.errors import ArtefactDamaged, ArtefactMissing

__all__ = ["RowDigests", "read_digests", "write_digests"]

_BYTES = 32
_UNREAD = bytes(_BYTES)


class RowDigests(Sequence[str]):
    """Digests in hexadecimal, in the order of the rows; "" for a row that could not be read. Immutable."""

    def __init__(self, digests: UInt8[np.ndarray, "rows 32"]) -> None:
        """Take them as bytes; all zeros for a row that could not be read."""
        self._digests = digests

    @classmethod
    def of(cls, digests: Iterable[str]) -> RowDigests:
        """Take them in hexadecimal."""
        data = bytearray()
        for digest in digests:
            data += bytes.fromhex(digest) if digest else _UNREAD
        return cls(np.frombuffer(bytes(data), dtype=np.uint8).reshape(-1, _BYTES))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._digests)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> RowDigests: ...
    def __getitem__(self, row: int | slice) -> str | RowDigests:
        """Return the digest of a row, or those of a range of rows as a copy of their own."""
        if isinstance(row, slice):
            return RowDigests(self._digests[row].copy())
        data = self._digests[row].tobytes()
        return "" if data == _UNREAD else data.hex()


def write_digests(path: Path, digests: RowDigests) -> None:
    """Write the digests of a job that runs in parts, so that they are whole or absent, also after a power cut."""
    draft = path.with_name(path.name + ".draft")
    save_array(draft, digests._digests)
    sync_path(draft)
    draft.replace(path)
    sync_path(path.parent)


def read_digests(path: Path) -> RowDigests:
    """Map what `write_digests` wrote.

    Raises:
        ArtefactMissing: it is not there: the job was never planned to its end, or not in parts.
        ArtefactDamaged: it is not that.
    """
    if not path.exists():
        raise ArtefactMissing(
            f"{path.name} is not in {path.parent.name!r}: run `python -m index plan` with the same --out again"
        )
    try:
        found = map_array(path, np.uint8, 2)
    except ArtefactDamaged as error:
        raise ArtefactDamaged(
            f"{path.name} in {path.parent.name!r} is damaged: run `python -m index plan` with the same --out again"
        ) from error
    if found.shape[1] != _BYTES:
        raise ArtefactDamaged(f"{path.name} has {found.shape[1]} bytes a row; due are {_BYTES}: plan the job again")
    return RowDigests(found)
