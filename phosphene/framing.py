"""Which part of an image an encoder sees: the arithmetic of resize and centre crop, forwards and back; no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from phosphene.preprocessing import ExactSize, Preprocessing, Resize, ShortestEdge

__all__ = ["Region", "crop_span", "grid_region", "resized_size"]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of an upright image, in shares of its width and height; beyond 0 to 1 where it was padded."""

    left: float
    """0 is the image's left edge."""
    top: float
    """0 is its upper edge."""
    right: float
    """1 is its right edge."""
    bottom: float
    """1 is its lower edge."""


def resized_size(resize: Resize, height: int, width: int) -> ExactSize:
    """Return what an upright image of this size is resized to."""
    match resize:
        case None:
            return ExactSize(height=height, width=width)
        case ExactSize():
            return resize
        case ShortestEdge(pixels=short):
            # The same float arithmetic as transformers, so that the longer edge is cut to the same whole number.
            long = int(short * max(height, width) / min(height, width))
            return ExactSize(height=long, width=short) if width <= height else ExactSize(height=short, width=long)
        case _:
            assert_never(resize)


def crop_span(length: int, crop: int | None) -> tuple[int, int, int]:
    """Return start and end of what a centre crop keeps of an edge, and the zeros before it where it is too short."""
    if crop is None:
        return 0, length, 0
    if length >= crop:
        start = (length - crop) // 2
        return start, start + crop, 0
    return 0, length, (crop - length + 1) // 2


def grid_region(preprocessing: Preprocessing, grid: tuple[int, int], *, width: int, height: int) -> Region:
    """Return the part of an image that a grid of patches covers.

    Args:
        preprocessing: from image to pixels.
        grid: rows and columns of square patches from the upper left on; what is left over belongs to none.
        width: of the upright image, in pixels.
        height: likewise.
    """
    size, crop = preprocessing.size, preprocessing.crop
    resized = resized_size(preprocessing.resize, height, width)
    top, bottom = _edges(resized.height, crop.height if crop else None, size.height, grid[0])
    left, right = _edges(resized.width, crop.width if crop else None, size.width, grid[1])
    return Region(left=left, top=top, right=right, bottom=bottom)


def _edges(length: int, crop: int | None, prepared: int, patches: int) -> tuple[float, float]:
    start, _, padding = crop_span(length, crop)
    covered = prepared // patches * patches
    return (start - padding) / length, (start - padding + covered) / length
