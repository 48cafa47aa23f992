"""Small corpora and encoders on disk for the tests of harvest and fit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 30), "green": (30, 180, 60), "blue": (40, 60, 210), "white": (240, 240, 240)}


def write_corpus(folder: Path, image_count: int) -> Path:
    """A folder of 32 px images, each noise on one of four colours, in sub-folders named after the colour."""
    generator = np.random.default_rng(0)
    for index in range(image_count):
        label = list(COLOURS)[index % len(COLOURS)]
        pixels = np.asarray(COLOURS[label]) + generator.normal(0, 30, (32, 32, 3)) + generator.normal(0, 40, (1, 1, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, format="PNG")
        file = folder / label / f"{index:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(buffer.getvalue())
    return folder


def corrupt(folder: Path, position: int) -> Path:
    """Cut the image at this place of the corpus's order to half its bytes."""
    file = sorted(folder.rglob("*.png"))[position]
    file.write_bytes(file.read_bytes()[:200])
    return file
