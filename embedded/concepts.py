"""The closed vocabulary of the scenes: which concepts exist, and which of them one scene shows.

Knows nothing of pixels, captions or models.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

Factor = Literal["shape", "colour", "texture", "size", "position", "background", "count"]

FACTORS: tuple[Factor, ...] = ("shape", "colour", "texture", "size", "position", "background", "count")
OBJECT_FACTORS: tuple[Factor, ...] = ("shape", "colour", "texture", "size", "position")

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
TEXTURES = ("solid", "striped", "dotted", "checkered", "zigzag", "shaded")
SIZES = ("small", "medium", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")
BACKGROUNDS = ("white", "gray", "black", "sand", "sky", "meadow")
COUNTS = ("one", "two", "three")

OBJECT_LIMIT = 3


def values_of(factor: Factor) -> tuple[str, ...]:
    """All values that a factor can take, in the fixed order that integer labels use."""
    match factor:
        case "shape":
            return SHAPES
        case "colour":
            return COLOURS
        case "texture":
            return TEXTURES
        case "size":
            return SIZES
        case "position":
            return POSITIONS
        case "background":
            return BACKGROUNDS
        case "count":
            return COUNTS
        case _:
            assert_never(factor)


@dataclass(frozen=True, kw_only=True)
class ObjectFactors:
    """One object of a scene."""

    shape: str
    colour: str
    texture: str
    size: str
    position: str
    box: tuple[int, int, int, int]
    """left, top, right, bottom in px; right and bottom are exclusive."""

    def value(self, factor: Factor) -> str:
        """The object's value of one of `OBJECT_FACTORS`."""
        match factor:
            case "shape":
                return self.shape
            case "colour":
                return self.colour
            case "texture":
                return self.texture
            case "size":
                return self.size
            case "position":
                return self.position
            case "background" | "count":
                raise ValueError(f"{factor!r} belongs to a scene, not to an object; ask one of {OBJECT_FACTORS}")
            case _:
                assert_never(factor)


@dataclass(frozen=True, kw_only=True)
class SceneFactors:
    """The ground truth of one scene."""

    objects: tuple[ObjectFactors, ...]
    """Largest first."""
    background: str

    @property
    def count(self) -> str:
        """How many objects the scene shows, as a word of `COUNTS`."""
        return COUNTS[len(self.objects) - 1]

    def values(self, factor: Factor) -> frozenset[str]:
        """The values of one factor that the scene shows."""
        match factor:
            case "background":
                return frozenset({self.background})
            case "count":
                return frozenset({self.count})
            case _:
                return frozenset(item.value(factor) for item in self.objects)


def shown_values(factors: SceneFactors) -> frozenset[tuple[Factor, str]]:
    """Every (factor, value) pair that a scene shows."""
    return frozenset((factor, value) for factor in FACTORS for value in factors.values(factor))
