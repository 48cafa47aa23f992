"""Which bytes the n-th request sends, and which fingerprint its answer must carry.

Imports the standard library alone, because the load generators run in the peers' environments too.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Requests", "with_serial"]

_START, _COMMENT = b"\xff\xd8", b"\xff\xfe"


@dataclass(frozen=True, kw_only=True)
class Requests:
    """An endless series of requests about a few photos in turn."""

    photos: tuple[bytes, ...]
    """JPEG files."""
    expected: tuple[tuple[int, ...], ...] | None
    """The fingerprint of each; None where every answer that names neurons is taken for right."""
    is_repeated: bool = False
    """Whether every request sends the same bytes as the first."""
    series: int = 0
    """Tells this series' bytes from those of others about the same photos, 0..2^31 - 1."""

    @classmethod
    def read(cls, folder: Path, *, size: str, decoding: str | None, is_repeated: bool = False, series: int = 0) -> Self:
        """Read the photos that `photos.make_photos` wrote.

        Args:
            folder: where.
            size: `small` or `large`.
            decoding: `drafted` or `whole`: which fingerprint a right answer has; None: any.
            is_repeated: send the same bytes every time.
            series: number of this series of requests.
        """
        due = json.loads((folder / "expected.json").read_text(encoding="utf-8"))[size]
        return cls(
            photos=tuple(path.read_bytes() for path in sorted((folder / size).iterdir())),
            expected=None if decoding is None else tuple(tuple(entry[decoding]) for entry in due),
            is_repeated=is_repeated,
            series=series,
        )

    def data(self, serial: int) -> bytes:
        """What the request with this number, 0..2^32 - 1, sends."""
        if self.is_repeated:
            return self.photos[0]
        return with_serial(self.photos[serial % len(self.photos)], (self.series << 32) + serial)

    def is_right(self, serial: int, neuron_ids: tuple[int, ...]) -> bool:
        """Whether an answer is about the photo that was sent."""
        if self.expected is None:
            return bool(neuron_ids)
        return neuron_ids == self.expected[0 if self.is_repeated else serial % len(self.photos)]


def with_serial(jpeg: bytes, serial: int) -> bytes:
    """Put a number into a JPEG as a comment right after its start; the picture stays as it is."""
    if not jpeg.startswith(_START):
        raise ValueError(f"not a JPEG: it starts with {jpeg[:2]!r}")
    comment = struct.pack(">Q", serial)
    return _START + _COMMENT + struct.pack(">H", 2 + len(comment)) + comment + jpeg[len(_START) :]
