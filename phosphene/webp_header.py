"""What a WebP says of itself: its canvas and orientation; decodes no pixel."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from phosphene.errors import ImageUnreadable
from phosphene.exif import exif_orientation
from phosphene.image_limits import SEGMENT_LIMIT, ImageLimits, check_decoded, check_pixels, cut_off, too_many_parts

__all__ = ["WebpHeader", "is_webp", "webp_header", "webp_size"]


@dataclass(frozen=True, kw_only=True)
class WebpHeader:
    """A WebP, still or animated; width and height are those of the canvas."""

    width: int
    height: int
    orientation: int
    decoded_bytes: int
    pixel_stream: bytes


def is_webp(data: bytes) -> bool:
    """Whether a file begins as a WebP does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def webp_header(data: bytes, limits: ImageLimits) -> WebpHeader:
    """Read a WebP's header; raises `ImageError` as `image_headers.read_header` does."""
    riff_end = 8 + int.from_bytes(data[4:8], "little")
    if riff_end > len(data) or len(data) < 30:
        raise cut_off("WebP", f"after {len(data)} bytes (it says {riff_end})")
    width, height = webp_size(data)
    check_pixels(width, height, limits.webp_pixels)
    decoded_bytes = 12 * width * height
    check_decoded(decoded_bytes, limits.webp_decoded_bytes, "WebP")
    return WebpHeader(
        width=width,
        height=height,
        orientation=_orientation(data, riff_end),
        decoded_bytes=decoded_bytes,
        pixel_stream=data[:riff_end],
    )


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas; raises `ImageUnreadable` where the first chunk is no picture."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageUnreadable(f"WebP begins with {kind!r}, which is no picture; save it anew")


def _orientation(data: bytes, riff_end: int) -> int:
    if data[12:16] != b"VP8X":
        return 1
    position = 12
    for _ in range(SEGMENT_LIMIT):
        if position + 8 > riff_end:
            return 1
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return exif_orientation(data[position + 8 : min(position + 8 + length, riff_end)])
        position += 8 + length + (length & 1)
    raise too_many_parts("WebP")
