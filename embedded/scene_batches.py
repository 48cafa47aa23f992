"""Batches of fresh scenes with all their labels, rendered in a process beside the trainer.

Most scenes are drawn at the model's resolution; some are drawn larger and reduced by PIL as the preprocessor does.
Knows the labels that training needs, but not the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Full

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from embedded.captions import ObjectClaim, SceneClaim, claim_scene, distort_claim, word_claim
from embedded.clip_folder import TOKEN_LIMIT, build_tokenizer
from embedded.concepts import FACTORS, OBJECT_FACTORS, OBJECT_LIMIT, SceneFactors, shown_values, values_of
from embedded.scene_plan import FULL_MIX, SceneMix, plan_scene
from embedded.scenes import draw_scene

EASY_MIX = SceneMix(count_weights=(0.8, 0.15, 0.05), size_weights=(0.15, 0.35, 0.5))
_LARGER_PX = (96, 128, 160)
_PRESENCE = [(factor, value) for factor in FACTORS for value in values_of(factor)]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which scenes a run draws."""

    first_seed: int
    """The run's scenes are first_seed, first_seed + 1, ...; none is ever drawn twice."""
    batch_size: int
    image_px: int = 64
    patch_px: int = 8
    easy_images: int = 60_000
    """Over so many images the mix goes from easy to full."""
    larger_share: float = 0.12
    """Share of scenes drawn larger and then reduced."""


@dataclass(frozen=True, kw_only=True)
class SceneBatch:
    """One batch; rows are scenes."""

    first_image: int
    """How many images came before this batch in the run's plan."""
    pixels: UInt8[np.ndarray, "batch height width 3"]
    facts: Int[np.ndarray, "batch facts"]
    """background, count, then five factors per object; -1 where there is none."""
    presence: Float[np.ndarray, "batch prompts"]
    patch_objects: Int[np.ndarray, "batch patches"]
    """0 background, else 1 + the object that covers most of the patch."""
    silhouette: UInt8[np.ndarray, "batch patches pixels"]
    tokens: Int[np.ndarray, "batch tokens"]
    claims: Int[np.ndarray, "batch facts"]
    near_miss_tokens: Int[np.ndarray, "half tokens"]
    """False captions of the first half of the scenes; for all of them the text tower would cost too much."""


def _claim_row(claim: SceneClaim) -> list[int]:
    row = [
        -1 if claim.background is None else values_of("background").index(claim.background),
        -1 if claim.count is None else values_of("count").index(claim.count),
    ]
    for place in range(OBJECT_LIMIT):
        item = claim.objects[place] if place < len(claim.objects) else ObjectClaim()
        named = {"shape": item.shape, "colour": item.colour, "texture": item.texture, "size": item.size}
        for factor in OBJECT_FACTORS:
            value = item.position if factor == "position" else named[factor]
            row.append(-1 if value is None else values_of(factor).index(value))
    return row


def _fact_row(factors: SceneFactors) -> list[int]:
    row = [values_of("background").index(factors.background), len(factors.objects) - 1]
    for place in range(OBJECT_LIMIT):
        for factor in OBJECT_FACTORS:
            known = place < len(factors.objects)
            row.append(values_of(factor).index(factors.objects[place].value(factor)) if known else -1)
    return row


def _mix_after(image_count: int, easy_images: int) -> SceneMix:
    share = min(image_count / easy_images, 1.0) if easy_images > 0 else 1.0
    easy, full = EASY_MIX, FULL_MIX

    def between(low: tuple[float, float, float], high: tuple[float, float, float]) -> tuple[float, float, float]:
        return (
            low[0] + share * (high[0] - low[0]),
            low[1] + share * (high[1] - low[1]),
            low[2] + share * (high[2] - low[2]),
        )

    return SceneMix(
        count_weights=between(easy.count_weights, full.count_weights),
        size_weights=between(easy.size_weights, full.size_weights),
    )


class BatchMaker:
    """Draws the batches of a plan, in order."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._tokenizer = build_tokenizer()

    def make(self, first_image: int) -> SceneBatch:
        """The batch that begins at the run's image number `first_image`."""
        plan = self._plan
        mix = _mix_after(first_image, plan.easy_images)
        pixels, maps, facts, presence, claims = [], [], [], [], []
        captions: list[str] = []
        near_misses: list[str] = []
        for number in range(first_image, first_image + plan.batch_size):
            generator = np.random.default_rng((plan.first_seed + number, 1))
            scene_plan = plan_scene(plan.first_seed + number, mix)
            scene = draw_scene(scene_plan, plan.image_px)
            drawn = scene.pixels
            if generator.random() < plan.larger_share:
                larger_px = _LARGER_PX[int(generator.integers(len(_LARGER_PX)))]
                larger = Image.fromarray(draw_scene(scene_plan, larger_px).pixels)
                drawn = np.asarray(larger.resize((plan.image_px, plan.image_px), Image.Resampling.BICUBIC))
            claim = claim_scene(scene.factors, generator)
            shown = shown_values(scene.factors)
            pixels.append(drawn)
            maps.append(scene.object_map)
            facts.append(_fact_row(scene.factors))
            presence.append([float(pair in shown) for pair in _PRESENCE])
            captions.append(word_claim(claim))
            claims.append(_claim_row(claim))
            if 2 * len(near_misses) < plan.batch_size:
                near_misses.append(word_claim(distort_claim(claim, scene.factors, generator)))
        side = plan.image_px // plan.patch_px
        blocks = np.stack(maps).reshape(-1, side, plan.patch_px, side, plan.patch_px).transpose(0, 1, 3, 2, 4)
        blocks = blocks.reshape(plan.batch_size, side * side, plan.patch_px**2)
        cover = np.stack([(blocks == place + 1).sum(-1) for place in range(OBJECT_LIMIT)], axis=-1)
        patch_objects = np.where(cover.max(-1) >= 0.15 * plan.patch_px**2, cover.argmax(-1) + 1, 0)
        tokens = self._tokenizer([*captions, *near_misses], padding=True, truncation=True, max_length=TOKEN_LIMIT)
        ids = np.asarray(tokens["input_ids"], np.int64)
        return SceneBatch(
            first_image=first_image,
            pixels=np.stack(pixels),
            facts=np.asarray(facts, np.int64),
            presence=np.asarray(presence, np.float32),
            patch_objects=patch_objects.astype(np.int64),
            silhouette=(blocks > 0).astype(np.uint8),
            tokens=ids[: plan.batch_size],
            claims=np.asarray(claims, np.int64),
            near_miss_tokens=ids[plan.batch_size :],
        )


def _fill(plan: BatchPlan, first_image: int, batches: "Queue[SceneBatch]", closed: Event) -> None:
    maker = BatchMaker(plan)
    while not closed.is_set():
        batch = maker.make(first_image)
        first_image += plan.batch_size
        while not closed.is_set():
            try:
                batches.put(batch, timeout=1.0)
                break
            except Full:
                continue


@contextmanager
def open_batches(plan: BatchPlan, first_image: int = 0) -> Iterator[Iterator[SceneBatch]]:
    """Batches without end from a process of their own, at most four ahead of the reader.

    Args:
        plan: which scenes.
        first_image: where in the plan to begin, for a run that goes on.
    """
    context = get_context("spawn")
    batches: Queue[SceneBatch] = context.Queue(maxsize=4)
    closed = context.Event()
    process = context.Process(target=_fill, args=(plan, first_image, batches, closed), daemon=True)
    process.start()
    try:
        yield iter(batches.get, None)
    finally:
        closed.set()
        batches.cancel_join_thread()
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()
