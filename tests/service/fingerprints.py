"""Images that their codes tell apart, two generations that answer each in their own way, and a check of an answer.

An image is one colour; the fake engine's code of it is that colour, so a code names its image. The second generation
swaps red and blue, so a code names the generation that made it, too.
"""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from phosphene.errors import ArtefactDamaged
from phosphene.images import image_sha256
from phosphene.v1 import explain_pb2, values_pb2
from service.catalogue import Catalogue
from tests.fakes import FakeEngine, fake_entry, png

PARTS = [explain_pb2.EXPLAIN_PART_CODE]
POISON_RED = 255
"""The red of images whose pixels break the engine."""
_LEAST, _STEPS = 30, 200


@dataclass(frozen=True)
class Picture:
    """One image and everything that an answer must say of it."""

    colour: tuple[int, int, int]
    data: bytes = field(repr=False)
    sha256: str

    @property
    def is_poison(self):
        return self.colour[0] == POISON_RED


def picture(number, *, is_poison=False):
    """The image with this number; all 8 million of them differ, and none is black enough to fall silent."""
    red, green, blue = (_LEAST + number // _STEPS**power % _STEPS for power in range(3))
    colour = (POISON_RED if is_poison else red, green, blue)
    data = png(colour, width=8, height=8)
    return Picture(colour, data, image_sha256(data))


def by_bytes(one, **fields):
    image = values_pb2.ImageQuery(data=one.data)
    return explain_pb2.ExplainRequest(image=image, parts=PARTS, **fields)


def by_digest(one, **fields):
    image = values_pb2.ImageQuery(sha256=one.sha256)
    return explain_pb2.ExplainRequest(image=image, parts=PARTS, **fields)


def is_of(answer, one, worlds):
    """Whether an answer is of this image, whole, and made by one generation alone."""
    world = next((world for world in worlds if world.bundle_id == answer.provenance.bundle_id), None)
    if world is None or answer.image.sha256 != one.sha256:
        return False
    red, green, blue = one.colour if not world.is_mirrored else one.colour[::-1]
    code = dict(zip(answer.code.neuron_ids, answer.code.activations, strict=True))
    expected = {0: red, 1: green, 2: blue, 3: (red + green + blue) / 3}
    return code.keys() == expected.keys() and all(
        abs(255 * code[neuron] - level) < 0.1 for neuron, level in expected.items()
    )


class WorldEngine(FakeEngine):
    """Encodes colours as they are, or with red and blue swapped; breaks on poison."""

    def __init__(self, *, is_mirrored=False):
        super().__init__()
        self._is_mirrored = is_mirrored
        self.is_poison = lambda image: int(image[2 if is_mirrored else 0].max()) == POISON_RED

    def run(self, pixels, want):
        return super().run(np.ascontiguousarray(pixels[:, ::-1]) if self._is_mirrored else pixels, want)


@dataclass
class World:
    """One generation: its entry, and how often it was opened and closed."""

    is_mirrored: bool
    engine: WorldEngine = field(init=False)
    bundle_id: str = field(init=False)
    open_count: int = 0
    closed_count: int = 0

    def __post_init__(self):
        self.engine = WorldEngine(is_mirrored=self.is_mirrored)
        self.bundle_id = ("d" if self.is_mirrored else "a") * 64

    def entry(self):
        bundle, corpora = fake_entry(self.engine)
        return replace(bundle, facts=replace(bundle.facts, bundle_id=self.bundle_id)), corpora


class Worlds:
    """Two generations, one of which the settings name at a time; or a broken one."""

    def __init__(self):
        self.both = (World(is_mirrored=False), World(is_mirrored=True))
        self.named = 0
        self.fault = None
        """What opening raises, where something is wrong with what the settings name."""

    def switch(self):
        """Name the other one from now on."""
        self.named = 1 - self.named

    def make_opener(self, settings, on_stage):
        @asynccontextmanager
        async def open_named(before):
            if self.fault is not None:
                raise self.fault
            world = self.both[self.named]
            world.open_count += 1
            try:
                yield Catalogue([world.entry()])
            finally:
                world.closed_count += 1

        return open_named


BROKEN = ArtefactDamaged("bundle /b: sae_weights.safetensors has another digest than its manifest says")
