"""Pictures for the decode workers, and what is asked of their pixels."""

import io
from functools import cache

import numpy as np
from PIL import Image

from phosphene.preprocessing import ExactSize, Preprocessing, ShortestEdge


def preprocessing(resize, crop=None, resample="bicubic"):
    return Preprocessing(
        resize=resize, resample=resample, crop=crop, rescale_factor=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3
    )


SMALL = preprocessing(ExactSize(height=24, width=24))
LARGE = preprocessing(ShortestEdge(pixels=896), crop=ExactSize(height=896, width=896))
VARIETY = (
    SMALL,
    preprocessing(ShortestEdge(pixels=40), crop=ExactSize(height=32, width=48), resample="bilinear"),
    preprocessing(ExactSize(height=17, width=61), resample="lanczos"),
    preprocessing(None, crop=ExactSize(height=50, width=20)),
)
WIDE_PX = 4000


def picture(seed, *, kind="PNG"):
    """A file with pixels of its own."""
    source = np.random.default_rng(seed)
    height, width = source.integers(20, 90, 2)
    stream = io.BytesIO()
    Image.fromarray(source.integers(0, 256, (height, width, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


@cache
def wide_picture():
    """A small file of 16 megapixels: at least a quarter of a second, and 200 MiB, to decode."""
    stream = io.BytesIO()
    Image.new("RGBA", (WIDE_PX, WIDE_PX), (1, 2, 3, 200)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
