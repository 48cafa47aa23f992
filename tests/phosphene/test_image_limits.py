"""Limits: what an image may cost is checked from its header, before a decoder runs."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from phosphene.errors import ImageFormatUnsupported, ImageTooLarge, ImageUnreadable
from phosphene.image_headers import ImageLimits, JpegHeader, read_header
from phosphene.images import read_image
from tests.phosphene.png_writer import chunk, encoded, photo, png_bytes

LIMITS = ImageLimits()


def png_saying(width: int, height: int, depth: int = 8, colour_type: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_saying(width: int, height: int, *, components: int = 3, precision: int = 8, scans: int = 1) -> bytes:
    specs = b"".join(bytes([index + 1, 0x11, 0]) for index in range(components))
    frame = struct.pack(">BHHB", precision, height, width, components) + specs
    scan = b"\xff\xda" + struct.pack(">H", 6) + b"\x01\x01\x00\x00" + b"\x12\xff\x00\x34\xff\xd0\x56"
    return b"\xff\xd8\xff\xc2" + struct.pack(">H", len(frame) + 2) + frame + scan * scans + b"\xff\xd9"


def webp_saying(width: int, height: int) -> bytes:
    payload = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_too_many_bytes():
    with pytest.raises(ImageTooLarge, match=r"16\.0 MiB; the limit is 16 MiB \(PHOSPHENE_IMAGE_LIMIT_BYTES\)"):
        read_image(b"\xff\xd8\xff" + bytes(16 * 2**20))


def test_an_empty_file_says_so():
    with pytest.raises(ImageUnreadable, match="empty"):
        read_image(b"")


@pytest.mark.parametrize("data", [png_saying(7001, 7143), jpeg_saying(7001, 7143)])
def test_too_many_pixels(data):
    with pytest.raises(ImageTooLarge, match=r"50\.0 MP \(7001 x 7143\); the limit is 50 MP"):
        read_image(data)


def test_webp_has_a_lower_limit():
    read_header(webp_saying(6000, 4000), LIMITS)
    with pytest.raises(ImageTooLarge, match="the limit is 24 MP"):
        read_image(webp_saying(6001, 4000))


@pytest.mark.parametrize("data", [png_saying(0, 5), jpeg_saying(5, 0)])
def test_no_pixels_at_all(data):
    with pytest.raises(ImageUnreadable, match="at least one pixel"):
        read_image(data)


def test_deep_and_many_channelled_files_reach_their_limit_earlier():
    read_header(png_saying(7000, 7000, depth=8, colour_type=6), LIMITS)
    with pytest.raises(ImageTooLarge, match="MiB to decode"):
        read_header(png_saying(7000, 7000, depth=16, colour_type=6), LIMITS)
    read_header(jpeg_saying(7000, 7000, components=4), LIMITS)
    with pytest.raises(ImageTooLarge, match="MiB to decode"):
        read_header(jpeg_saying(7000, 7000, components=4, scans=2), LIMITS)
    with pytest.raises(ImageTooLarge, match="MiB to decode"):
        read_header(webp_saying(100, 100), ImageLimits(webp_decoded_bytes=100_000))


def test_scans_are_counted_past_stuffed_bytes_and_restart_markers():
    header = read_header(jpeg_saying(8, 8, scans=100), LIMITS)
    assert isinstance(header, JpegHeader)
    assert header.scan_count == 100
    with pytest.raises(ImageTooLarge, match="over 100 scans"):
        read_image(jpeg_saying(8, 8, scans=101))


def test_scans_of_a_real_progressive_jpeg():
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    header = read_header(data, LIMITS)
    assert isinstance(header, JpegHeader)
    assert header.scan_count == data.count(b"\xff\xda") > 5
    with pytest.raises(ImageTooLarge):
        read_image(data, limits=ImageLimits(jpeg_scans=5))


@pytest.mark.parametrize("data", [jpeg_saying(8, 8, precision=12), jpeg_saying(8, 8, components=2)])
def test_variants_that_no_decoder_reads(data):
    with pytest.raises(ImageFormatUnsupported):
        read_image(data)


def test_thousands_of_parts_are_refused():
    samples = np.zeros((1, 1, 1), int)
    with pytest.raises(ImageUnreadable, match="more than 65536 parts"):
        read_image(png_bytes(samples, colour_type=0, depth=8, extra=chunk(b"tEXt", b"") * 70_000))
    with pytest.raises(ImageUnreadable, match="more than 65536 parts"):
        read_image(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 70_000)


def test_two_frame_headers_cannot_hide_a_large_one():
    small, large = jpeg_saying(8, 8), jpeg_saying(9000, 5000)
    with pytest.raises(ImageUnreadable, match="two frame headers"):
        read_image(small[:-2] + large[2:])


def test_metadata_is_left_out_of_what_is_decoded():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    plain = encoded(photo(16, 16), "JPEG")
    described = encoded(photo(16, 16), "JPEG", exif=exif, comment=b"a comment", icc_profile=bytes(70_000))
    assert read_header(described, LIMITS).pixel_stream == plain


def test_limits_in_force_are_the_callers():
    data = encoded(photo(10, 10), "PNG")
    assert read_image(data, limits=ImageLimits(pixels=100)).width == 10
    with pytest.raises(ImageTooLarge):
        read_image(data, limits=ImageLimits(pixels=99))
