"""What an image file says about itself before anything is decoded, and the limits that it must keep.

Reads JPEG markers, PNG chunks and WebP containers from bytes; decodes no pixel and knows nothing of Pillow. A header
carries the file without its metadata (`pixel_stream`): colour profiles, comments, thumbnails, animation chunks and
compressed text never reach the decoder, so a bomb in them cannot go off. Colour profiles are not applied.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from phosphene.errors import ImageFormatUnsupported, ImageTooLarge, ImageUnreadable

__all__ = ["ImageHeader", "ImageLimits", "JpegHeader", "PngHeader", "WebpHeader", "read_header"]

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_SEGMENT_LIMIT = 65_536
_OTHER_FORMATS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
)
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# (first column, first row, column step, row step) of the seven passes of Adam7 (PNG specification, 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Inside a scan, 0xFF is data when 0x00 (stuffing) or a restart marker follows; anything else ends the scan.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost; checked from the header, before any decode."""

    file_bytes: int = 16 * 2**20
    """Bytes of the file as it arrives."""
    pixels: int = 50_000_000
    """Width x height of a JPEG or PNG."""
    webp_pixels: int = 24_000_000
    """Width x height of a WebP, whose decoder holds three canvases."""
    jpeg_decoded_bytes: int = 400 * 2**20
    """One byte per pixel and component, and two per coefficient where the file has several scans."""
    png_decoded_bytes: int = 256 * 2**20
    """Bytes after inflation: width x height x channels x bit depth / 8."""
    webp_decoded_bytes: int = 288 * 2**20
    """Twelve bytes per pixel: three canvases of RGBA."""
    jpeg_scans: int = 100
    """Scans of one JPEG; each costs a pass over the whole picture."""


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
        bits = _PNG_CHANNELS[self.colour_type] * self.bit_depth
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for first_column, first_row, column_step, row_step in passes:
            columns = max(0, -(-(self.width - first_column) // column_step))
            rows = max(0, -(-(self.height - first_row) // row_step))
            total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
        return total


@dataclass(frozen=True, kw_only=True)
class WebpHeader:
    """A WebP, still or animated; width and height are those of the canvas."""

    width: int
    height: int
    orientation: int
    decoded_bytes: int
    pixel_stream: bytes


ImageHeader = JpegHeader | PngHeader | WebpHeader


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Read what a file says about itself and hold it against the limits.

    Args:
        data: a whole JPEG, PNG or WebP file; the format is told by content.
        limits: what one image may cost.

    Raises:
        ImageFormatUnsupported: another format, or a variant that no decoder here reads.
        ImageTooLarge: beyond a limit.
        ImageUnreadable: empty, cut off, or against its format's rules.
    """
    if not data:
        raise ImageUnreadable("image is empty (0 bytes); send the bytes of a JPEG, PNG or WebP file")
    if len(data) > limits.file_bytes:
        raise ImageTooLarge(
            f"image has {len(data) / 2**20:.1f} MiB; the limit is {limits.file_bytes / 2**20:g} MiB "
            "(PHOSPHENE_IMAGE_LIMIT_BYTES); send a smaller or more strongly compressed file"
        )
    header: ImageHeader
    if data.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(data, limits)
    elif data.startswith(_PNG_MAGIC):
        header = _png_header(data, limits)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp_header(data, limits)
    else:
        raise ImageFormatUnsupported(f"image is {_describe_other(data)}; send JPEG, PNG or WebP")
    return header


def _describe_other(data: bytes) -> str:
    head = data[:64].lstrip()
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic) or data.startswith(magic):
            return f"{name}, which is not read"
    if data[4:8] == b"ftyp":
        return "an ISO media file (HEIC, AVIF or video), which is not read"
    return f"in no format that is known here (first bytes: {data[:8].hex(' ')})"


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width == 0 or height == 0:
        raise ImageUnreadable(f"image is {width} x {height} pixels large; an image has at least one pixel")
    if width * height > limit:
        raise ImageTooLarge(
            f"image is {width * height / 1e6:.1f} MP ({width} x {height}); the limit is {limit / 1e6:g} MP "
            "(PHOSPHENE_IMAGE_LIMIT_PIXELS; WebP has a lower one of its own); scale it down"
        )


def _check_decoded(decoded_bytes: int, limit: int, kind: str) -> None:
    if decoded_bytes > limit:
        raise ImageTooLarge(
            f"{kind} needs {decoded_bytes / 2**20:.0f} MiB to decode; the limit is {limit / 2**20:g} MiB; scale it "
            "down, or save it with 8 bits per channel, as RGB, not progressive"
        )


def _cut_off(kind: str, place: str) -> ImageUnreadable:
    return ImageUnreadable(f"{kind} is cut off {place}; send the whole file")


def _too_many_parts(kind: str) -> ImageUnreadable:
    return ImageUnreadable(f"{kind} has more than {_SEGMENT_LIMIT} parts; the limit is {_SEGMENT_LIMIT}; save it anew")


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


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (marker, start, payload start, end) of each segment up to the end marker; a scan includes its data."""
    position = 2
    for _ in range(_SEGMENT_LIMIT):
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
            raise _cut_off("JPEG", "in its header")
        end = position + int.from_bytes(data[position : position + 2], "big")
        if end > len(data) or end < position + 2:
            raise _cut_off("JPEG", f"in segment 0x{marker:02X} at byte {start}")
        if marker == 0xDA:
            found = _SCAN_END.search(data, end)
            end = found.start() if found else len(data)
        yield marker, start, position + 2, end
        position = end
    raise _too_many_parts("JPEG")


def _jpeg_header(data: bytes, limits: ImageLimits) -> JpegHeader:
    kept = [data[:2]]
    orientation, scan_count = 1, 0
    frame: tuple[int, int, list[int]] | None = None
    for marker, start, payload, end in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame is not None:
                raise ImageUnreadable("JPEG has two frame headers; the limit is one; save it anew")
            frame = _jpeg_frame(data[payload:end])
            _check_pixels(frame[0], frame[1], limits.pixels)
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
        raise _cut_off("JPEG", "before its picture begins")
    width, height, samplings = frame
    decoded_bytes = width * height * len(samplings)
    if scan_count > 1:
        decoded_bytes += 2 * width * height * sum(samplings) // max(samplings)
    _check_decoded(decoded_bytes, limits.jpeg_decoded_bytes, "JPEG")
    return JpegHeader(
        width=width,
        height=height,
        orientation=orientation,
        decoded_bytes=decoded_bytes,
        pixel_stream=b"".join(kept),
        scan_count=scan_count,
    )


def _jpeg_frame(payload: bytes) -> tuple[int, int, list[int]]:
    """Return width, height and the blocks per unit of each component from a start-of-frame segment."""
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise _cut_off("JPEG", "in its frame header")
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


def _png_header(data: bytes, limits: ImageLimits) -> PngHeader:
    header: tuple[int, int, int, int, int] | None = None
    palette, transparency, orientation = b"", None, 1
    kept, idat = [_PNG_MAGIC], []
    for kind, start, end in _png_chunks(data):
        payload = data[start + 8 : end - 4]
        is_critical = not kind[0] & 0x20
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[start + 4 : end - 4]) != checksum:
            raise ImageUnreadable(f"PNG is damaged: wrong checksum in {kind!r} at byte {start}; send it again")
        if (kind == b"IHDR") != (header is None):
            raise ImageUnreadable("PNG does not begin with exactly one header chunk; save it anew")
        if kind == b"IHDR":
            header = _png_frame(payload)
            _check_pixels(header[0], header[1], limits.pixels)
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
        raise _cut_off("PNG", "before its picture begins")
    width, height, bit_depth, colour_type, interlace = header
    if colour_type == 3 and not palette:
        raise ImageUnreadable("PNG has palette indices and no palette; save it anew")
    decoded_bytes = height * ((width * _PNG_CHANNELS[colour_type] * bit_depth + 7) // 8)
    _check_decoded(decoded_bytes, limits.png_decoded_bytes, "PNG")
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


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each chunk up to and with IEND; start is at the length, end after the checksum."""
    position = len(_PNG_MAGIC)
    for _ in range(_SEGMENT_LIMIT):
        if position + 12 > len(data):
            raise _cut_off("PNG", f"after {len(data)} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise _cut_off("PNG", f"in chunk {kind!r} at byte {position}")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise _too_many_parts("PNG")


def _png_frame(payload: bytes) -> tuple[int, int, int, int, int]:
    if len(payload) != 13:
        raise ImageUnreadable(f"PNG has a header of {len(payload)} bytes; it has 13; save it anew")
    width, height, bit_depth, colour_type, compression, row_filter, interlace = struct.unpack(">IIBBBBB", payload)
    if bit_depth not in _PNG_DEPTHS.get(colour_type, ()) or compression or row_filter or interlace > 1:
        raise ImageUnreadable(
            f"PNG has colour type {colour_type} with {bit_depth} bits, compression {compression}, filter {row_filter}, "
            f"interlace {interlace}: no such PNG exists; save it anew"
        )
    return width, height, bit_depth, colour_type, interlace


def _webp_header(data: bytes, limits: ImageLimits) -> WebpHeader:
    riff_end = 8 + int.from_bytes(data[4:8], "little")
    if riff_end > len(data) or len(data) < 30:
        raise _cut_off("WebP", f"after {len(data)} bytes (it says {riff_end})")
    width, height = _webp_size(data)
    _check_pixels(width, height, limits.webp_pixels)
    decoded_bytes = 12 * width * height
    _check_decoded(decoded_bytes, limits.webp_decoded_bytes, "WebP")
    return WebpHeader(
        width=width,
        height=height,
        orientation=_webp_orientation(data, riff_end),
        decoded_bytes=decoded_bytes,
        pixel_stream=data[:riff_end],
    )


def _webp_size(data: bytes) -> tuple[int, int]:
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


def _webp_orientation(data: bytes, riff_end: int) -> int:
    if data[12:16] != b"VP8X":
        return 1
    position = 12
    for _ in range(_SEGMENT_LIMIT):
        if position + 8 > riff_end:
            return 1
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return exif_orientation(data[position + 8 : min(position + 8 + length, riff_end)])
        position += 8 + length + (length & 1)
    raise _too_many_parts("WebP")
