"""Which part of an image a grid covers: told from the pixels that an encoder is given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phosphene.framing import grid_region
from phosphene.images import prepare
from phosphene.preprocessing import ExactSize, Preprocessing, Resize, ShortestEdge

RESIZES = st.sampled_from(
    [ShortestEdge(pixels=48), ShortestEdge(pixels=64), ExactSize(height=60, width=72), ExactSize(height=48, width=48)]
)


def _preprocessing(resize: Resize, crop: ExactSize | None) -> Preprocessing:
    return Preprocessing(
        resize=resize,
        resample="bilinear",
        crop=crop,
        rescale_factor=1 / 255,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def _ramp(width: int, height: int) -> bytes:
    """An image whose red says how far right a pixel is, and whose green how far down, 50 to 250."""
    red = np.broadcast_to(50 + 200 * (np.arange(width) + 0.5) / width, (height, width))
    green = np.broadcast_to((50 + 200 * (np.arange(height) + 0.5) / height)[:, None], (height, width))
    stream = io.BytesIO()
    Image.fromarray(np.stack([red, green, red], axis=-1).round().astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@settings(deadline=None)
@given(RESIZES, st.integers(60, 200), st.integers(60, 200))
def test_the_middle_of_each_patch_is_where_the_region_says(resize: Resize, width: int, height: int) -> None:
    preprocessing = _preprocessing(resize, ExactSize(height=48, width=48))
    pixels = prepare(_ramp(width, height), preprocessing).pixels.astype(float)
    region = grid_region(preprocessing, (4, 4), width=width, height=height)
    for patch in range(4):
        share = (patch + 0.5) / 4
        across = region.left + share * (region.right - region.left)
        down = region.top + share * (region.bottom - region.top)
        middle = 12 * patch + 6
        assert (pixels[0, 24, middle - 1 : middle + 1].mean() - 50) / 200 == pytest.approx(across, abs=0.012)
        assert (pixels[1, middle - 1 : middle + 1, 24].mean() - 50) / 200 == pytest.approx(down, abs=0.012)


def test_without_a_crop_a_grid_covers_the_whole_image() -> None:
    region = grid_region(_preprocessing(ExactSize(height=32, width=32), None), (4, 4), width=300, height=20)
    assert (region.left, region.top, region.right, region.bottom) == (0, 0, 1, 1)


def test_padding_reaches_beyond_the_image() -> None:
    preprocessing = _preprocessing(ExactSize(height=32, width=16), ExactSize(height=32, width=32))
    region = grid_region(preprocessing, (4, 4), width=50, height=100)
    assert (region.left, region.top, region.right, region.bottom) == (-0.5, 0, 1.5, 1)


def test_pixels_beyond_the_last_whole_patch_belong_to_none() -> None:
    preprocessing = _preprocessing(ExactSize(height=384, width=384), None)
    region = grid_region(preprocessing, (27, 27), width=384, height=384)
    assert (region.left, region.right) == (0, 378 / 384)
