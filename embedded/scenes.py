"""Seeded scenes of one to three objects with known concepts: plan a scene, draw it, write a corpus of them.

    python -m embedded.scenes render DIR --first-seed 1000000 --count 4000 --size 160

A seed decides the whole scene; the resolution only decides how finely it is drawn. Seeds are divided so that no scene
is ever both trained on and tested on: see `embedded/README.md`. Knows nothing of models.
"""

import argparse
import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from embedded.captions import claim_scene, word_claim
from embedded.concepts import ObjectFactors, SceneFactors
from embedded.scene_plan import FULL_MIX, PlannedObject, SceneMix, ScenePlan, plan_scene
from embedded.shapes import signed_distance
from embedded.textures import draw_background, pattern

CORPUS_FIRST_SEED = 1_000_000
EVALUATION_FIRST_SEED = 2_000_000
TRAINING_FIRST_SEED = 1_000_000_000

RENDERER_VERSION = 1
"""Raised when a seed no longer draws the same scene."""

_OUTLINE = 0.02


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One drawn scene with its ground truth."""

    pixels: UInt8[np.ndarray, "height width 3"]
    object_map: UInt8[np.ndarray, "height width"]
    """0 where the background shows, else 1 + the place of the object in `factors.objects`."""
    caption: str
    factors: SceneFactors
    seed: int


def draw_scene(plan: ScenePlan, size_px: int) -> Scene:
    """Draw a planned scene on a square canvas of `size_px`.

    Raises:
        ValueError: if `size_px` is below 16.
    """
    if size_px < 16:
        raise ValueError(f"scenes are drawn at 16 px or more, not {size_px}; ask for a larger size_px")
    canvas = draw_background(plan.background, plan.noise, size_px)
    object_map = np.zeros((size_px, size_px), np.uint8)
    objects = []
    for index, item in enumerate(plan.objects):
        rows, columns, inside = _draw_object(canvas, item)
        object_map[rows, columns][inside] = index + 1
        ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        objects.append(
            ObjectFactors(
                shape=item.shape,
                colour=item.colour,
                texture=item.texture,
                size=item.size,
                position=item.position,
                box=(
                    columns.start + int(xs[0]),
                    rows.start + int(ys[0]),
                    columns.start + int(xs[-1]) + 1,
                    rows.start + int(ys[-1]) + 1,
                ),
            )
        )
    factors = SceneFactors(objects=tuple(objects), background=plan.background)
    return Scene(
        pixels=(np.clip(canvas, 0, 255, out=canvas) + np.float32(0.5)).astype(np.uint8),
        object_map=object_map,
        caption=word_claim(claim_scene(factors, np.random.default_rng(plan.caption_seed))),
        factors=factors,
        seed=plan.seed,
    )


def _draw_object(
    canvas: Float[np.ndarray, "size size 3"], item: PlannedObject
) -> tuple[slice, slice, Bool[np.ndarray, "rows columns"]]:
    size_px = canvas.shape[0]
    reach = 1.1 * item.radius
    rows = slice(
        max(int((item.centre_y - reach) * size_px), 0), min(int((item.centre_y + reach) * size_px) + 2, size_px)
    )
    columns = slice(
        max(int((item.centre_x - reach) * size_px), 0), min(int((item.centre_x + reach) * size_px) + 2, size_px)
    )
    right = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / size_px - item.centre_x)[None, :]
    up = (item.centre_y - (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / size_px)[:, None]
    cosine, sine = np.float32(math.cos(item.rotation)), np.float32(math.sin(item.rotation))
    x, y = cosine * right + sine * up, cosine * up - sine * right
    radius = np.float32(item.radius)
    distance_px = signed_distance(item.shape, x / radius, y / radius).astype(np.float32) * (radius * size_px)

    base = np.asarray(item.rgb, np.float32)
    tint = base + (255 - base) * np.float32(0.68)
    light = pattern(item.texture, x, y, item.period, item.turn, 1 / size_px).astype(np.float32)[:, :, None]
    fill = base + (tint - base) * light
    if item.texture == "shaded":
        along = (x * math.cos(item.turn) + y * math.sin(item.turn)).astype(np.float32) / radius
        fill = fill * (0.72 - 0.42 * along)[:, :, None] + (70 * np.clip(-along, 0, 1))[:, :, None]
    edge = np.clip(distance_px + _OUTLINE * size_px + 0.5, 0, 1)[:, :, None]
    fill = fill + (0.45 * base - fill) * edge
    cover = np.clip(0.5 - distance_px, 0, 1)
    patch = canvas[rows, columns]
    patch += (np.clip(fill, 0, 255) - patch) * cover[:, :, None]
    return rows, columns, cover >= 0.5


def render_scene(seed: int, size_px: int = 64, mix: SceneMix = FULL_MIX) -> Scene:
    """The scene of a seed: the same at any resolution.

    Args:
        seed: names the scene; captions and factors depend on it and on `mix` alone.
        size_px: side of the square picture, at least 16.
        mix: how often each count and size is drawn.
    """
    return draw_scene(plan_scene(seed, mix), size_px)


def render_corpus(folder: Path, first_seed: int, count: int, size_px: int) -> None:
    """Write a corpus: `images/*.png`, `captions.csv` (file, label, caption), `factors.jsonl` and `scenes.json`.

    The label is the colour and shape of the largest object. Written into `folder.partial` and renamed when complete, so
    that a folder of that name is always whole; an unfinished one is begun again, and a whole one of the same scenes, as
    `scenes.json` tells, is left alone.

    Raises:
        ValueError: if count is not positive.
        FileExistsError: if the folder is there already and holds anything else.
    """
    asked = {"renderer": RENDERER_VERSION, "first_seed": first_seed, "count": count, "size_px": size_px}
    if count < 1:
        raise ValueError(f"a corpus holds at least 1 scene, not {count}; give a larger count")
    if folder.exists():
        about = folder / "scenes.json"
        if about.is_file() and json.loads(about.read_text(encoding="utf-8")) == asked:
            return
        raise FileExistsError(f"{folder} holds something else than {asked}; remove it or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    (partial / "images").mkdir(parents=True)
    with (
        (partial / "captions.csv").open("w", newline="", encoding="utf-8") as captions_file,
        (partial / "factors.jsonl").open("w", encoding="utf-8") as factors_file,
        (partial / "scenes.json").open("w", encoding="utf-8") as about_file,
    ):
        captions = csv.writer(captions_file, lineterminator="\n")
        captions.writerow(("file", "label", "caption"))
        for seed in range(first_seed, first_seed + count):
            scene = render_scene(seed, size_px)
            name = f"images/{seed:010d}.png"
            Image.fromarray(scene.pixels).save(partial / name, compress_level=3)
            largest = scene.factors.objects[0]
            captions.writerow((name, f"{largest.colour} {largest.shape}", scene.caption))
            line = {"file": name, "seed": seed, "count": scene.factors.count, **asdict(scene.factors)}
            factors_file.write(json.dumps(line, sort_keys=True) + "\n")
        about_file.write(json.dumps(asked, sort_keys=True) + "\n")
        for written in (captions_file, factors_file, about_file):
            written.flush()
            os.fsync(written.fileno())
    partial.rename(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `render` writes a corpus, `sheet` one picture of many scenes."""
    parser = argparse.ArgumentParser(prog="python -m embedded.scenes", description="Render scenes with known concepts.")
    commands = parser.add_subparsers(dest="command", required=True)
    render = commands.add_parser("render", help="write a corpus of images, captions and factors")
    render.add_argument("folder", type=Path)
    sheet = commands.add_parser("sheet", help="write one PNG that shows many scenes")
    sheet.add_argument("file", type=Path)
    for command in (render, sheet):
        command.add_argument("--first-seed", type=int, default=CORPUS_FIRST_SEED)
        command.add_argument("--count", type=int, default=4000 if command is render else 48)
        command.add_argument("--size", type=int, default=160, help="side of an image in px")
    options = parser.parse_args(arguments)
    try:
        if options.command == "render":
            render_corpus(options.folder, options.first_seed, options.count, options.size)
        else:
            _render_sheet(options.file, options.first_seed, options.count, options.size)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _render_sheet(file: Path, first_seed: int, count: int, size_px: int, column_count: int = 8) -> None:
    rows = math.ceil(count / column_count)
    sheet = np.full((rows * (size_px + 4), column_count * (size_px + 4), 3), 255, np.uint8)
    for place in range(count):
        top, left = (place // column_count) * (size_px + 4), (place % column_count) * (size_px + 4)
        sheet[top : top + size_px, left : left + size_px] = render_scene(first_seed + place, size_px).pixels
    Image.fromarray(sheet).save(file)


if __name__ == "__main__":
    sys.exit(main())
