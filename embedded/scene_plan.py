"""What a seed decides about a scene: the mix of counts and sizes, each object, where it stands.

Lengths are shares of the scene's side, so that a plan can be drawn at any resolution. Knows nothing of
drawing or captions.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from embedded.concepts import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, TEXTURES
from embedded.textures import OBJECT_RGB, plan_noise

DIAMETERS = {"small": 20 / 64, "medium": 30 / 64, "large": 42 / 64}
"""Share of the scene's side, before a jitter of 6 %."""

_MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class SceneMix:
    """How often each count and size is drawn."""

    count_weights: tuple[float, float, float] = (0.5, 0.3, 0.2)
    """Shares of scenes with one, two and three objects."""
    size_weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    """Shares of small, medium and large objects in scenes of one object."""


FULL_MIX = SceneMix()
SINGLE_OBJECT_MIX = SceneMix(count_weights=(1.0, 0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class PlannedObject:
    """One object before it is drawn; lengths are shares of the scene's side, y runs down."""

    shape: str
    colour: str
    texture: str
    size: str
    centre_x: float
    centre_y: float
    radius: float
    rotation: float
    """Radians, within 15 degrees."""
    rgb: tuple[float, float, float]
    """0..255."""
    period: float
    turn: float
    """Direction of stripes and shading, in radians."""

    @property
    def position(self) -> str:
        """Where in the scene the centre lies, as a word of `POSITIONS`."""
        right, down = self.centre_x - 0.5, self.centre_y - 0.5
        if max(abs(right), abs(down)) < 0.085:
            return "center"
        if abs(right) > abs(down):
            return "right" if right > 0 else "left"
        return "bottom" if down > 0 else "top"


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """All that a seed decides about the picture, at no resolution yet."""

    seed: int
    objects: tuple[PlannedObject, ...]
    """Largest first, which is also the order of drawing."""
    background: str
    noise: tuple[Float[np.ndarray, "knots knots"], ...]
    caption_seed: int


def plan_scene(seed: int, mix: SceneMix = FULL_MIX) -> ScenePlan:
    """Decide everything about a scene but its resolution."""
    generator = np.random.default_rng(seed)
    count = 1 + _draw_index(generator, mix.count_weights)
    places = _place_one(generator, mix) if count == 1 else _place_several(generator, count)
    background = BACKGROUNDS[int(generator.integers(len(BACKGROUNDS)))]
    objects = tuple(_plan_object(generator, *place) for place in places)
    return ScenePlan(
        seed=seed,
        objects=objects,
        background=background,
        noise=plan_noise(background, generator),
        caption_seed=int(generator.integers(2**62)),
    )


_Place = tuple[str, float, float, float]
"""size, centre_x, centre_y, radius"""


def _draw_index(generator: np.random.Generator, weights: Sequence[float]) -> int:
    draw, index = generator.random() * sum(weights), 0
    while index < len(weights) - 1 and draw >= weights[index]:
        draw -= weights[index]
        index += 1
    return index


def _draw_radius(generator: np.random.Generator, size: str) -> float:
    return 0.5 * DIAMETERS[size] * (0.94 + 0.12 * generator.random())


def _place_one(generator: np.random.Generator, mix: SceneMix) -> list[_Place]:
    size = SIZES[_draw_index(generator, mix.size_weights)]
    radius = _draw_radius(generator, size)
    room = 0.5 - radius - _MARGIN
    along, across = room * (0.8 + 0.2 * generator.random()), 0.25 * room * (2 * generator.random() - 1)
    match POSITIONS[int(generator.integers(len(POSITIONS)))]:
        case "left":
            right, down = -along, across
        case "right":
            right, down = along, across
        case "top":
            right, down = across, -along
        case "bottom":
            right, down = across, along
        case _:
            right, down = 0.5 * across, 0.25 * (along - 0.9 * room)
    return [(size, 0.5 + right, 0.5 + down, radius)]


def _place_several(generator: np.random.Generator, count: int) -> list[_Place]:
    """Objects that hardly touch: tries at random, then small ones in fixed places."""
    layouts = _PAIRS if count == 2 else _TRIPLES
    sizes = layouts[int(generator.integers(len(layouts)))]
    for _ in range(6):
        places: list[_Place] = []
        for size in sizes:
            radius = _draw_radius(generator, size)
            tries = (radius + _MARGIN) + (1 - 2 * radius - 2 * _MARGIN) * generator.random((16, 2))
            free = [
                (float(x), float(y))
                for x, y in tries
                if all(math.hypot(x - px, y - py) >= 0.98 * (radius + other) for _, px, py, other in places)
            ]
            if not free:
                break
            places.append((size, *free[0], radius))
        if len(places) == count:
            return places
    shift = 0.06 * generator.random((3, 2)) - 0.03
    corners = ((0.26, 0.28), (0.74, 0.3), (0.5, 0.74))
    return [
        (
            "small",
            corners[i][0] + float(shift[i, 0]),
            corners[i][1] + float(shift[i, 1]),
            _draw_radius(generator, "small"),
        )
        for i in range(count)
    ]


_PAIRS = (
    ("small", "small"),
    ("medium", "small"),
    ("medium", "small"),
    ("medium", "medium"),
    ("large", "small"),
    ("large", "small"),
)
_TRIPLES = (("small", "small", "small"), ("medium", "small", "small"), ("medium", "medium", "small"))


def _plan_object(
    generator: np.random.Generator, size: str, centre_x: float, centre_y: float, radius: float
) -> PlannedObject:
    draws = generator.random(6)
    colour = COLOURS[int(generator.integers(len(COLOURS)))]
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in OBJECT_RGB[colour]))
    rgb = colorsys.hls_to_rgb(
        (hue + 0.012 * (2 * draws[0] - 1)) % 1,
        min(max(lightness + 0.03 * (2 * draws[1] - 1), 0), 1),
        min(max(saturation * (1 + 0.08 * (2 * draws[2] - 1)), 0), 1),
    )
    return PlannedObject(
        shape=SHAPES[int(generator.integers(len(SHAPES)))],
        colour=colour,
        texture=TEXTURES[int(generator.integers(len(TEXTURES)))],
        size=size,
        centre_x=centre_x,
        centre_y=centre_y,
        radius=radius,
        rotation=math.radians(15) * (2 * draws[3] - 1),
        rgb=(255 * rgb[0], 255 * rgb[1], 255 * rgb[2]),
        period=0.105 * (0.92 + 0.16 * draws[4]) * (0.8 + 0.6 * radius / 0.328),
        turn=math.pi / 4 * int(4 * draws[5]),
    )
