"""What a PNG says of itself: its frame, palette and data, checksums checked; decodes no pixel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from phosphene.errors import ImageUnreadable
from phosphene.exif import exif_orientation
from phosphene.image_limits import SEGMENT_LIMIT, ImageLimits, check_decoded, check_pixels, cut_off, too_many_parts

__all__ = ["PNG_MAGIC", "PngHeader", "png_header", "png_size"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# (first column, first row, column step, row step) of the seven passes of Adam7 (PNG specification, 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True, kw_only=True)
class PngHeader:
    """A PNG; of an APNG the default image, which is what a still viewer shows."""

    width: int
    height: int
    orientation: int
    decoded_bytes: int
    """Bytes of samples, without the filter byte of each row."""
    pixel_stream: bytes
    bit_depth: int
    colour_type: int
    interlaced: bool
    palette: bytes
    """RGB triples; empty where there is no PLTE chunk."""
    transparency: bytes | None
    """The tRNS chunk."""
    idat: tuple[bytes, ...]

    def inflates_fully(self) -> bool:
        """Tell whether the compressed data hold every row; decoders leave missing rows black without a word."""
        expected, found = self._inflated_byte_count(), 0
        inflater = zlib.decompressobj()
        for part in self.idat:
            pending = part
            while pending and not inflater.eof and found < expected:
                found += len(inflater.decompress(pending, 2**20))
                pending = inflater.unconsumed_tail
        return found >= expected

    def _inflated_byte_count(self) -> int:
        bits = _CHANNELS[self.colour_type] * self.bit_depth
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for first_column, first_row, column_step, row_step in passes:
            columns = max(0, -(-(self.width - first_column) // column_step))
            rows = max(0, -(-(self.height - first_row) // row_step))
            total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
        return total


def png_header(data: bytes, limits: ImageLimits) -> PngHeader:
    """Read a PNG's header; raises `ImageError` as `image_headers.read_header` does."""
    header: tuple[int, int, int, int, int] | None = None
    palette, transparency, orientation = b"", None, 1
    kept, idat = [PNG_MAGIC], []
    for kind, start, end in _chunks(data):
        payload = data[start + 8 : end - 4]
        is_critical = not kind[0] & 0x20
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[start + 4 : end - 4]) != checksum:
            raise ImageUnreadable(f"PNG is damaged: wrong checksum in {kind!r} at byte {start}; send it again")
        if (kind == b"IHDR") != (header is None):
            raise ImageUnreadable("PNG does not begin with exactly one header chunk; save it anew")
        if kind == b"IHDR":
            header = _frame(payload)
            check_pixels(header[0], header[1], limits.pixels)
        elif kind == b"PLTE":
            palette = payload
        elif kind == b"tRNS":
            transparency = payload
        elif kind == b"IDAT":
            idat.append(payload)
        elif kind == b"eXIf":
            orientation = exif_orientation(payload)
        elif is_critical and kind != b"IEND":
            raise ImageUnreadable(f"PNG has a critical chunk {kind!r} that is not known here; save it anew")
        if is_critical:
            kept.append(data[start:end])
    if header is None or not idat:
        raise cut_off("PNG", "before its picture begins")
    width, height, bit_depth, colour_type, interlace = header
    if colour_type == 3 and not palette:
        raise ImageUnreadable("PNG has palette indices and no palette; save it anew")
    decoded_bytes = height * ((width * _CHANNELS[colour_type] * bit_depth + 7) // 8)
    check_decoded(decoded_bytes, limits.png_decoded_bytes, "PNG")
    return PngHeader(
        width=width,
        height=height,
        orientation=orientation,
        decoded_bytes=decoded_bytes,
        pixel_stream=b"".join(kept),
        bit_depth=bit_depth,
        colour_type=colour_type,
        interlaced=interlace == 1,
        palette=palette,
        transparency=transparency,
        idat=tuple(idat),
    )


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as stored, at a glance; None where the file does not begin with its header chunk."""
    if data[8:16] != b"\x00\x00\x00\x0dIHDR" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each chunk up to and with IEND; start is at the length, end after the checksum."""
    position = len(PNG_MAGIC)
    for _ in range(SEGMENT_LIMIT):
        if position + 12 > len(data):
            raise cut_off("PNG", f"after {len(data)} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise cut_off("PNG", f"in chunk {kind!r} at byte {position}")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise too_many_parts("PNG")


def _frame(payload: bytes) -> tuple[int, int, int, int, int]:
    if len(payload) != 13:
        raise ImageUnreadable(f"PNG has a header of {len(payload)} bytes; it has 13; save it anew")
    width, height, bit_depth, colour_type, compression, row_filter, interlace = struct.unpack(">IIBBBBB", payload)
    if bit_depth not in _DEPTHS.get(colour_type, ()) or compression or row_filter or interlace > 1:
        raise ImageUnreadable(
            f"PNG has colour type {colour_type} with {bit_depth} bits, compression {compression}, filter {row_filter}, "
            f"interlace {interlace}: no such PNG exists; save it anew"
        )
    return width, height, bit_depth, colour_type, interlace
