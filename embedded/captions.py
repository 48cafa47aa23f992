"""What one can truthfully say of a scene: claims, their wording, near-miss claims, and the zero-shot prompts.

A claim names some factor values and leaves the others open. Knows nothing of pixels or models.
"""

from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from embedded.concepts import FACTORS, Factor, ObjectFactors, SceneFactors, values_of


@dataclass(frozen=True, kw_only=True)
class ObjectClaim:
    """What is said of one object; None is left open."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    position: str | None = None

    def holds(self, item: ObjectFactors) -> bool:
        """Whether the object has every value that the claim names."""
        return (
            self.shape in (None, item.shape)
            and self.colour in (None, item.colour)
            and self.texture in (None, item.texture)
            and self.size in (None, item.size)
            and self.position in (None, item.position)
        )


@dataclass(frozen=True, kw_only=True)
class SceneClaim:
    """What is said of a scene; None is left open."""

    objects: tuple[ObjectClaim, ...] = ()
    background: str | None = None
    count: str | None = None

    def holds(self, factors: SceneFactors) -> bool:
        """Whether each claimed object matches some object of the scene, and background and count agree."""
        return (
            self.background in (None, factors.background)
            and self.count in (None, factors.count)
            and all(any(claim.holds(item) for item in factors.objects) for claim in self.objects)
        )


_PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}


def word_claim(claim: SceneClaim) -> str:
    """The English of a claim, lower case, words parted by single spaces and commas."""
    if claim.objects:
        head = " and ".join(_word_object(item) for item in claim.objects)
    elif claim.count is not None:
        head = "one object" if claim.count == "one" else f"{claim.count} objects"
    else:
        head = "something"
    return head if claim.background is None else f"{head}, on a {claim.background} background"


def _word_object(claim: ObjectClaim) -> str:
    words = [word for word in (claim.size, claim.colour, claim.texture) if word is not None]
    words.append(claim.shape or "shape")
    article = "an" if words[0][0] in "aeiou" else "a"
    phrase = " ".join([article, *words])
    return phrase if claim.position is None else f"{phrase} {_PLACES[claim.position]}"


def claim_scene(factors: SceneFactors, generator: np.random.Generator) -> SceneClaim:
    """Draw one true claim: about half of them complete, the others partial."""
    draw = generator.random()
    background = factors.background
    if len(factors.objects) == 1:
        keep = 1.0 if draw < 0.45 else 0.5
        item = _claim_object(factors.objects[0], keep, generator)
        if draw > 0.94:
            return SceneClaim(background=background)
        return SceneClaim(objects=(item,), background=background if generator.random() < max(keep - 0.2, 0.3) else None)
    if draw > 0.92:
        return SceneClaim(count=factors.count, background=background if generator.random() < 0.5 else None)
    if draw > 0.72:
        chosen = factors.objects[int(generator.integers(len(factors.objects)))]
        return SceneClaim(objects=(_claim_object(chosen, 0.7, generator),))
    described = [factors.objects[index] for index in generator.permutation(len(factors.objects))[:2]]
    items = tuple(_claim_object(item, 0.75, generator) for item in described)
    return SceneClaim(objects=items, background=background if generator.random() < 0.5 else None)


def _claim_object(item: ObjectFactors, keep: float, generator: np.random.Generator) -> ObjectClaim:
    kept = generator.random(5) < (keep, keep, keep, keep, 0.7 * keep)
    if not kept.any():
        kept[int(generator.integers(3))] = True
    return ObjectClaim(
        shape=item.shape if kept[0] else None,
        colour=item.colour if kept[1] else None,
        texture=item.texture if kept[2] else None,
        size=item.size if kept[3] else None,
        position=item.position if kept[4] else None,
    )


def distort_claim(claim: SceneClaim, factors: SceneFactors, generator: np.random.Generator) -> SceneClaim:
    """A claim that differs from a true one in one value and is false of the scene: a hard negative.

    Shapes are changed about twice as often as any other factor, as they are learned last.
    """
    for _ in range(8):
        changed = _change_one(claim, generator)
        if not changed.holds(factors):
            return changed
    return SceneClaim(background=_other("background", factors.background, generator))


def _change_one(claim: SceneClaim, generator: np.random.Generator) -> SceneClaim:
    places: list[tuple[int, Factor]] = []
    for index, item in enumerate(claim.objects):
        named: dict[Factor, str | None] = {
            "shape": item.shape,
            "colour": item.colour,
            "texture": item.texture,
            "size": item.size,
            "position": item.position,
        }
        for factor, value in named.items():
            if value is not None:
                places.extend([(index, factor)] * (2 if factor == "shape" else 1))
    if claim.background is not None:
        places.append((-1, "background"))
    if claim.count is not None:
        places.append((-1, "count"))
    index, factor = places[int(generator.integers(len(places)))]
    match factor:
        case "background":
            return replace(claim, background=_other(factor, claim.background, generator))
        case "count":
            return replace(claim, count=_other(factor, claim.count, generator))
        case _:
            item = claim.objects[index]
            match factor:
                case "shape":
                    item = replace(item, shape=_other(factor, item.shape, generator))
                case "colour":
                    item = replace(item, colour=_other(factor, item.colour, generator))
                case "texture":
                    item = replace(item, texture=_other(factor, item.texture, generator))
                case "size":
                    item = replace(item, size=_other(factor, item.size, generator))
                case "position":
                    item = replace(item, position=_other(factor, item.position, generator))
                case _:
                    assert_never(factor)
            return replace(claim, objects=(*claim.objects[:index], item, *claim.objects[index + 1 :]))


def _other(factor: Factor, value: str | None, generator: np.random.Generator) -> str:
    others = [other for other in values_of(factor) if other != value]
    return others[int(generator.integers(len(others)))]


def prompts(factor: Factor) -> dict[str, str]:
    """One zero-shot prompt for each value of a factor, in the order of `values_of`."""
    return {value: word_claim(_claim_value(factor, value)) for value in values_of(factor)}


def _claim_value(factor: Factor, value: str) -> SceneClaim:
    match factor:
        case "shape":
            return SceneClaim(objects=(ObjectClaim(shape=value),))
        case "colour":
            return SceneClaim(objects=(ObjectClaim(colour=value),))
        case "texture":
            return SceneClaim(objects=(ObjectClaim(texture=value),))
        case "size":
            return SceneClaim(objects=(ObjectClaim(size=value),))
        case "position":
            return SceneClaim(objects=(ObjectClaim(position=value),))
        case "background":
            return SceneClaim(objects=(ObjectClaim(),), background=value)
        case "count":
            return SceneClaim(count=value)
        case _:
            assert_never(factor)


def vocabulary_words() -> tuple[str, ...]:
    """Every word that a caption or prompt can hold, sorted; what the tokenizer is made of."""
    words = {"a", "an", "and", "on", "at", "in", "the", "background", "shape", "something", "object", "objects", ","}
    return tuple(sorted(words.union(*(values_of(factor) for factor in FACTORS))))
