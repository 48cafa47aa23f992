"""Width and height at a glance: what the whole header says, or nothing."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phosphene.errors import ImageError
from phosphene.image_headers import ImageLimits, image_size, read_header
from tests.phosphene.png_writer import chunk

LIMITS = ImageLimits()
KINDS = st.sampled_from(
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": bytes(200_000), "comment": b"\xff\xc0" * 400}),
        (
            "JPEG",
            {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"},
        ),
        ("PNG", {}),
        ("WebP", {}),
        ("WebP", {"lossless": True}),
        ("WebP", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"}),
    ]
)


def file(width, height, kind, options):
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 77, np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


FILES = st.builds(lambda width, height, kind: file(width, height, *kind), st.integers(1, 70), st.integers(1, 70), KINDS)


@given(st.integers(1, 300), st.integers(1, 300), KINDS)
def test_the_size_of_every_format(width, height, kind):
    assert image_size(file(width, height, *kind)) == (width, height)


@st.composite
def damaged(draw):
    data = bytearray(draw(FILES))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, min(60, len(data) - 1)))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(damaged() | st.binary(max_size=100))
def test_it_never_contradicts_the_header_and_never_raises(data):
    size = image_size(data)
    assert size is None or (size[0] > 0 and size[1] > 0)
    try:
        header = read_header(data, LIMITS)
    except ImageError:
        return
    assert size in (None, (header.width, header.height))


@given(FILES)
def test_the_first_bytes_are_enough(data):
    # 200 kB of colour profile come before the frame header of a JPEG.
    assert image_size(data[:210_000]) == image_size(data)


def segments(count):
    return b"\xff\xfe\x00\x02" * count


FRAME = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 30, 40, 1) + b"\x01\x11\x00"


def test_only_so_many_segments_are_passed():
    assert image_size(b"\xff\xd8" + segments(255) + FRAME) == (40, 30)
    assert image_size(b"\xff\xd8" + segments(256) + FRAME) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(40),
        b"\xff\xd8\xff" + b"\xff" * 2**20 + FRAME,
        b"\xff\xd8\xff\xda\x00\x02" + FRAME,
        b"\xff\xd8\xff\xfe\x00\x00" * 10,
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 0, 40, 1) + bytes(9),
        b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", bytes(20)),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)),
        b"RIFF\x40\x00\x00\x00WEBPALPH" + bytes(40),
    ],
    ids=["empty", "gif", "fill bytes", "scan first", "no length", "no rows", "text first", "no columns", "no picture"],
)
def test_what_does_not_say_is_not_guessed(data):
    assert image_size(data) is None


def test_a_size_beyond_every_limit_is_told():
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    assert image_size(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)) == (2**31 - 1, 2**31 - 1)
