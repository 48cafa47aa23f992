"""What an image file says about itself before anything is decoded, and the limits that it must keep.

Reads JPEG markers, PNG chunks and WebP containers from bytes; decodes no pixel and knows nothing of Pillow. A header
carries the file without its metadata (`pixel_stream`): colour profiles, comments, thumbnails, animation chunks and
compressed text never reach the decoder, so a bomb in them cannot go off. Colour profiles are not applied.
"""

from __future__ import annotations

import contextlib

from phosphene.errors import ImageFormatUnsupported, ImageUnreadable
from phosphene.image_limits import ImageLimits, check_file_size
from phosphene.jpeg_header import JPEG_MAGIC, JpegHeader, jpeg_header, jpeg_size
from phosphene.png_header import PNG_MAGIC, PngHeader, png_header, png_size
from phosphene.webp_header import WebpHeader, is_webp, webp_header, webp_size

__all__ = ["ImageHeader", "ImageLimits", "JpegHeader", "PngHeader", "WebpHeader", "image_size", "read_header"]

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
    check_file_size(len(data), limits)
    header: ImageHeader
    if data.startswith(JPEG_MAGIC):
        header = jpeg_header(data, limits)
    elif data.startswith(PNG_MAGIC):
        header = png_header(data, limits)
    elif is_webp(data):
        header = webp_header(data, limits)
    else:
        raise ImageFormatUnsupported(f"image is {_describe_other(data)}; send JPEG, PNG or WebP")
    return header


def image_size(data: bytes) -> tuple[int, int] | None:
    """Tell (width, height) as stored, at a glance: microseconds whatever the file, and no judgement of it.

    Where `read_header` accepts the file, both agree, unless this one cannot tell.

    Args:
        data: any bytes.

    Returns:
        None where the file is in no known format, or does not say it in one of the places where it should.
    """
    size: tuple[int, int] | None = None
    if data.startswith(JPEG_MAGIC):
        size = jpeg_size(data)
    elif data.startswith(PNG_MAGIC):
        size = png_size(data)
    elif is_webp(data) and len(data) >= 30:
        with contextlib.suppress(ImageUnreadable):
            size = webp_size(data)
    return size if size is not None and 0 not in size else None


def _describe_other(data: bytes) -> str:
    head = data[:64].lstrip()
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic) or data.startswith(magic):
            return f"{name}, which is not read"
    if data[4:8] == b"ftyp":
        return "an ISO media file (HEIC, AVIF or video), which is not read"
    return f"in no format that is known here (first bytes: {data[:8].hex(' ')})"
