"""What fills an object and what lies behind it: anti-aliased patterns and soft backgrounds.

Knows nothing of shapes, captions or where objects stand. Lengths are shares of the scene's side, so that a scene looks
the same at any resolution.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

Plane = Float[np.ndarray, "height width"]

OBJECT_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (245, 132, 24),
    "yellow": (246, 212, 36),
    "green": (44, 158, 62),
    "blue": (36, 92, 214),
    "purple": (124, 52, 172),
    "pink": (244, 122, 186),
    "brown": (124, 74, 34),
}
BACKGROUND_RGB: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((253, 253, 252), (238, 239, 242)),
    "gray": ((158, 160, 165), (126, 128, 134)),
    "black": ((16, 17, 24), (38, 39, 50)),
    "sand": ((236, 219, 184), (217, 194, 150)),
    "sky": ((146, 200, 240), (206, 231, 249)),
    "meadow": ((190, 216, 158), (150, 190, 118)),
}
"""Colour at the top and at the bottom of the scene."""

_NOISE: dict[str, tuple[tuple[int, float], ...]] = {
    "white": ((5, 3.0),),
    "gray": ((6, 7.0),),
    "black": ((6, 6.0),),
    "sand": ((6, 6.0), (32, 7.0)),
    "sky": ((6, 20.0), (12, 8.0)),
    "meadow": ((8, 9.0), (26, 8.0)),
}
"""Octaves of value noise: knots per side, amplitude in grey levels."""


def pattern(texture: str, x: Plane, y: Plane, period: float, turn: float, pixel: float) -> Plane:
    """How much of the light tint covers each point of an object, in [0, 1].

    Args:
        texture: one of `embedded.concepts.TEXTURES`.
        x: horizontal coordinate in the object's own turned frame, share of the scene's side.
        y: vertical coordinate, likewise, up.
        period: length of one repeat, share of the scene's side.
        turn: direction of stripes, in radians.
        pixel: side of one pixel, share of the scene's side; the width over which edges are softened.

    Raises:
        ValueError: if the texture is unknown.
    """
    match texture:
        case "solid":
            return np.zeros_like(x)
        case "striped":
            across = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
            return _soft(_wave(across, period), pixel)
        case "dotted":
            row = np.floor(y / period)
            shifted = x + np.float32(0.5 * period) * (row % 2)
            centre_x = shifted - period * (np.floor(shifted / period) + np.float32(0.5))
            centre_y = y - period * (row + np.float32(0.5))
            return _soft(0.29 * period - np.hypot(centre_x, centre_y), pixel)
        case "checkered":
            wide = 1.15 * period
            first, second = _wave(x, wide), _wave(y, wide)
            return _soft(np.sign(first) * np.sign(second) * np.minimum(np.abs(first), np.abs(second)), pixel)
        case "zigzag":
            bend = 0.9 * np.abs((x / (1.7 * period)) % 1 - 0.5) * 1.7 * period
            return _soft(0.75 * _wave(y + bend, 1.15 * period), pixel)
        case "shaded":
            return np.zeros_like(x)
        case _:
            raise ValueError(f"unknown texture {texture!r}; the textures are listed in embedded.concepts.TEXTURES")


def _wave(coordinate: Plane, period: float) -> Plane:
    """Signed distance to the nearest edge of stripes of half a period each, positive on light stripes."""
    return period * (np.float32(0.25) - np.abs((coordinate / period) % 1 - np.float32(0.5)))


def _soft(distance: Plane, pixel: float) -> Plane:
    return np.clip(np.float32(0.5) + distance / pixel, 0, 1)


@lru_cache(maxsize=256)
def _between_knots(knot_count: int, size_px: int) -> tuple[Int[np.ndarray, " size"], Float[np.ndarray, " size"]]:
    """For each pixel centre the knot below it and how far on it lies, smoothed by a cosine."""
    place = (np.arange(size_px) + 0.5) / size_px * (knot_count - 1)
    low = np.minimum(place.astype(np.int64), knot_count - 2)
    return low, (0.5 - 0.5 * np.cos(np.pi * (place - low))).astype(np.float32)


def _smooth(knots: Float[np.ndarray, "knots knots"], size_px: int) -> Plane:
    """Value noise at pixel centres; gathered, not multiplied, so that no BLAS threads are woken for so little."""
    low, share = _between_knots(knots.shape[0], size_px)
    rows = knots[low]
    rows = rows + (knots[low + 1] - rows) * share[:, None]
    left = rows[:, low]
    smooth: Plane = left + (rows[:, low + 1] - left) * share
    return smooth


def plan_noise(background: str, generator: np.random.Generator) -> tuple[Float[np.ndarray, "knots knots"], ...]:
    """The random part of a background, independent of the resolution that it is drawn at."""
    return tuple(
        generator.random((knots, knots), dtype=np.float32) * (2 * amplitude) - amplitude
        for knots, amplitude in _NOISE[background]
    )


def draw_background(
    background: str, noise: tuple[Float[np.ndarray, "knots knots"], ...], size_px: int
) -> Float[np.ndarray, "size size 3"]:
    """A soft vertical gradient with value noise, RGB in 0..255.

    Args:
        background: one of `embedded.concepts.BACKGROUNDS`.
        noise: what `plan_noise` drew for this scene.
        size_px: side of the square canvas.
    """
    top, bottom = (np.asarray(rgb, np.float32) for rgb in BACKGROUND_RGB[background])
    ramp = ((np.arange(size_px, dtype=np.float32) + 0.5) / size_px)[:, None]
    noise_sum = sum((_smooth(knots, size_px) for knots in noise), np.zeros((size_px, size_px), np.float32))
    canvas: Float[np.ndarray, "size size 3"] = (top + (bottom - top) * ramp)[:, None, :] + noise_sum[:, :, None]
    return canvas
