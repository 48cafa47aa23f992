"""What one image may cost, and the errors of files that cost more or end too soon.

Pure values and checks; reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass

from phosphene.errors import ImageTooLarge, ImageUnreadable

__all__ = [
    "SEGMENT_LIMIT",
    "ImageLimits",
    "check_decoded",
    "check_file_size",
    "check_pixels",
    "cut_off",
    "too_many_parts",
]

SEGMENT_LIMIT = 65_536
"""Most parts (segments, chunks) of one file."""


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


def check_file_size(size_bytes: int, limits: ImageLimits) -> None:
    """Hold the length of a file against the limits.

    Raises:
        ImageTooLarge: beyond the limit.
        ImageUnreadable: empty.
    """
    if size_bytes == 0:
        raise ImageUnreadable("image is empty (0 bytes); send the bytes of a JPEG, PNG or WebP file")
    if size_bytes > limits.file_bytes:
        raise ImageTooLarge(
            f"image has {size_bytes / 2**20:.1f} MiB; the limit is {limits.file_bytes / 2**20:g} MiB "
            "(PHOSPHENE_IMAGE_LIMIT_BYTES); send a smaller or more strongly compressed file"
        )


def check_pixels(width: int, height: int, limit: int) -> None:
    """Refuse a picture of no pixels with `ImageUnreadable`, one of too many with `ImageTooLarge`."""
    if width == 0 or height == 0:
        raise ImageUnreadable(f"image is {width} x {height} pixels large; an image has at least one pixel")
    if width * height > limit:
        raise ImageTooLarge(
            f"image is {width * height / 1e6:.1f} MP ({width} x {height}); the limit is {limit / 1e6:g} MP "
            "(PHOSPHENE_IMAGE_LIMIT_PIXELS; WebP has a lower one of its own); scale it down"
        )


def check_decoded(decoded_bytes: int, limit: int, kind: str) -> None:
    """Refuse a picture that needs too much memory to decode with `ImageTooLarge`."""
    if decoded_bytes > limit:
        raise ImageTooLarge(
            f"{kind} needs {decoded_bytes / 2**20:.0f} MiB to decode; the limit is {limit / 2**20:g} MiB; scale it "
            "down, or save it with 8 bits per channel, as RGB, not progressive"
        )


def cut_off(kind: str, place: str) -> ImageUnreadable:
    """The error of a file that ends too soon."""
    return ImageUnreadable(f"{kind} is cut off {place}; send the whole file")


def too_many_parts(kind: str) -> ImageUnreadable:
    """The error of a file in more parts than are read."""
    return ImageUnreadable(f"{kind} has more than {SEGMENT_LIMIT} parts; the limit is {SEGMENT_LIMIT}; save it anew")
