"""The orientation that an EXIF block states; nothing else of EXIF is read."""

from __future__ import annotations

import struct

__all__ = ["exif_orientation"]


def exif_orientation(tiff: bytes) -> int:
    """Read the orientation (tag 0x0112) from an EXIF block; 1 where it is absent or cannot be read."""
    tiff = tiff.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (offset,) = struct.unpack_from(order + "I", tiff, 4)
    if offset + 2 > len(tiff):
        return 1
    (entry_count,) = struct.unpack_from(order + "H", tiff, offset)
    for entry in range(offset + 2, min(offset + 2 + 12 * entry_count, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, entry)
        if tag == 0x0112:
            (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), tiff, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1
