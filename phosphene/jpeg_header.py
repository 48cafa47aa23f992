"""What a JPEG says of itself: its frame, scans and orientation; decodes no pixel."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from phosphene.errors import ImageFormatUnsupported, ImageTooLarge, ImageUnreadable
from phosphene.exif import exif_orientation
from phosphene.image_limits import SEGMENT_LIMIT, ImageLimits, check_decoded, check_pixels, cut_off, too_many_parts

__all__ = ["JPEG_MAGIC", "JpegHeader", "jpeg_header", "jpeg_size"]

JPEG_MAGIC = b"\xff\xd8\xff"
"""How a JPEG begins."""
# Segments before the frame header of a JPEG whose size is told at a glance; a colour profile or thumbnail has a few.
_GLANCE_LIMIT = 256
# Inside a scan, 0xFF is data when 0x00 (stuffing) or a restart marker follows; anything else ends the scan.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """A JPEG up to its end marker."""

    width: int
    height: int
    orientation: int
    """EXIF orientation, 1..8; 1 where the file says nothing that can be read."""
    decoded_bytes: int
    pixel_stream: bytes
    scan_count: int


def jpeg_header(data: bytes, limits: ImageLimits) -> JpegHeader:
    """Read a JPEG's header; raises `ImageError` as `image_headers.read_header` does."""
    kept = [data[:2]]
    orientation, scan_count = 1, 0
    frame: tuple[int, int, list[int]] | None = None
    for marker, start, payload, end in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame is not None:
                raise ImageUnreadable("JPEG has two frame headers; the limit is one; save it anew")
            frame = _frame(data[payload:end])
            check_pixels(frame[0], frame[1], limits.pixels)
        elif marker == 0xDA:
            scan_count += 1
            if scan_count > limits.jpeg_scans:
                raise ImageTooLarge(
                    f"JPEG has over {limits.jpeg_scans} scans; the limit is {limits.jpeg_scans}; save it as baseline"
                )
        elif marker == 0xE1 and data[payload : payload + 6] == b"Exif\x00\x00" and orientation == 1:
            orientation = exif_orientation(data[payload:end])
        elif marker == 0xD8:
            raise ImageUnreadable("JPEG has a second start marker; save it anew")
        # JFIF (E0) and Adobe (EE) say how colours are coded; other application segments and comments do not.
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(data[start:end])
    if frame is None or scan_count == 0:
        raise cut_off("JPEG", "before its picture begins")
    width, height, samplings = frame
    decoded_bytes = width * height * len(samplings)
    if scan_count > 1:
        decoded_bytes += 2 * width * height * sum(samplings) // max(samplings)
    check_decoded(decoded_bytes, limits.jpeg_decoded_bytes, "JPEG")
    return JpegHeader(
        width=width,
        height=height,
        orientation=orientation,
        decoded_bytes=decoded_bytes,
        pixel_stream=b"".join(kept),
        scan_count=scan_count,
    )


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as stored, at a glance; None where its first segments do not say."""
    position = 2
    for _ in range(_GLANCE_LIMIT):
        if position + 9 > len(data) or data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or marker == 0xFF:
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (marker, start, payload start, end) of each segment up to the end marker; a scan includes its data."""
    position = 2
    for _ in range(SEGMENT_LIMIT):
        start = data.find(b"\xff", position)
        position = start
        while 0 <= position < len(data) and data[position] == 0xFF:
            position += 1
        if start < 0 or position >= len(data):
            return
        marker = data[position]
        position += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:
            continue
        if marker == 0xD9:
            yield marker, start, position, position
            return
        if position + 2 > len(data):
            raise cut_off("JPEG", "in its header")
        end = position + int.from_bytes(data[position : position + 2], "big")
        if end > len(data) or end < position + 2:
            raise cut_off("JPEG", f"in segment 0x{marker:02X} at byte {start}")
        if marker == 0xDA:
            found = _SCAN_END.search(data, end)
            end = found.start() if found else len(data)
        yield marker, start, position + 2, end
        position = end
    raise too_many_parts("JPEG")


def _frame(payload: bytes) -> tuple[int, int, list[int]]:
    """Return width, height and the blocks per unit of each component from a start-of-frame segment."""
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise cut_off("JPEG", "in its frame header")
    precision, height, width, component_count = struct.unpack_from(">BHHB", payload)
    if precision != 8:
        raise ImageFormatUnsupported(f"JPEG has {precision} bits per sample; the limit is 8; save it with 8 bits")
    if component_count not in (1, 3, 4):
        raise ImageFormatUnsupported(f"JPEG has {component_count} components; 1, 3 or 4 are read; save it as RGB")
    samplings = [payload[7 + 3 * index] for index in range(component_count)]
    blocks = [(sampling >> 4) * (sampling & 15) for sampling in samplings]
    if 0 in blocks:
        raise ImageUnreadable("JPEG has a component without samples; save it anew")
    return width, height, blocks
