"""Signed distances of the eight shapes, for anti-aliased drawing at any resolution.

Points are in units of the object's radius, x to the right and y up; distances are in the same unit, negative inside.
Distances are exact at the outline and a lower bound elsewhere, which is all that an outline a few pixels wide needs.
Formulas: I. Quilez, "2D distance functions" (heart), the rest from half-planes and discs.
Knows nothing of colours, textures or scenes.
"""

import math

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "height width"]


def signed_distance(shape: str, x: Plane, y: Plane) -> Plane:
    """Signed distance to a shape whose extent is about [-1, 1] in both axes.

    Args:
        shape: one of `embedded.concepts.SHAPES`.
        x: horizontal coordinate, to the right, in radii.
        y: vertical coordinate, up, in radii.

    Returns:
        Distances in radii, negative inside.

    Raises:
        ValueError: if the shape is unknown.
    """
    distance: Plane
    match shape:
        case "circle":
            distance = np.hypot(x, y) - 0.94
        case "square":
            distance = np.maximum(np.abs(x), np.abs(y)) - 0.82
        case "triangle":
            distance = _triangle(x, y)
        case "star":
            distance = _star(x, y)
        case "heart":
            distance = _heart(x, y)
        case "cross":
            distance = _cross(x, y)
        case "ring":
            distance = np.abs(np.hypot(x, y) - 0.70) - 0.26
        case "crescent":
            distance = np.maximum(np.hypot(x + 0.15, y) - 0.98, 0.80 - np.hypot(x - 0.32, y))
        case _:
            raise ValueError(f"unknown shape {shape!r}; the shapes are listed in embedded.concepts.SHAPES")
    return distance


def _triangle(x: Plane, y: Plane) -> Plane:
    side = math.cos(math.pi / 6) * np.abs(x) + 0.5 * (y + 0.28)
    distance: Plane = np.maximum(side - 0.56, -(y + 0.28) - 0.56)
    return distance


def _star(x: Plane, y: Plane) -> Plane:
    inner, sector = 0.44, 2 * math.pi / 5
    y = y + 0.06
    angle = np.arctan2(x, y)
    folded = np.abs(angle - sector * np.round(angle / sector))
    radius = np.hypot(x, y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    edge_x, edge_y = inner * math.cos(sector / 2) - 1.05, inner * math.sin(sector / 2)
    length = math.hypot(edge_x, edge_y)
    distance: Plane = ((along - 1.05) * edge_y - across * edge_x) / length
    return distance


def _heart(x: Plane, y: Plane) -> Plane:
    scale = 0.60
    x, y = np.abs(x) * scale, y * scale + 0.54
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    corner = 0.5 * np.maximum(x + y, 0)
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - corner, y - corner)) * np.sign(x - y)
    distance: Plane = np.where(x + y > 1, lobe, tip) / scale
    return distance


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    distance: Plane = np.minimum(np.maximum(x - 0.95, y - 0.32), np.maximum(x - 0.32, y - 0.95))
    return distance
