"""A bundle and a corpus that take a second to index: a random encoder, a random SAE, drawn pictures."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from phosphene.bundle import save_bundle
from phosphene.codes import CodeLimits
from phosphene.encoder import Family, Site, Tokens, load_encoder
from phosphene.sae import SparseAutoencoder
from phosphene.selection import TopK
from tests.families import write_encoder

NEURON_COUNT = 96
ACTIVE_COUNT = 8
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "bar")


def write_bundle(
    folder: Path,
    family: Family = Family.CLIP,
    *,
    seed: int = 0,
    tokens: Tokens = Tokens.CLS,
    with_tokenizer: bool = True,
) -> Path:
    """Write a random encoder and a bundle with a random SAE on it; returns the bundle's folder."""
    source = write_encoder(folder / f"{family.value}-{seed}", family, seed=0)
    if not with_tokenizer:
        for path in source.glob("tokenizer*"):
            path.unlink()
    encoder = load_encoder(source)
    site = Site(block=1, tokens=tokens)
    width = encoder.site_width(site)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(NEURON_COUNT, width, generator=generator), dim=1)
    sae = SparseAutoencoder(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(NEURON_COUNT),
        directions=directions,
        decoder_bias=torch.zeros(width),
        selection=TopK(ACTIVE_COUNT),
    )
    target = folder / f"bundle-{family.value}-{seed}-{tokens.value}"
    save_bundle(
        target, encoder=encoder, encoder_source=source, site=site, sae=sae, limits=CodeLimits(), training={"seed": seed}
    )
    return target


def draw(colour: str, shape: str, generator: np.random.Generator) -> bytes:
    """Draw one picture and return a PNG."""
    picture = Image.new("RGB", (40, 40), tuple(int(level) for level in generator.integers(180, 256, 3)))
    x, y = (int(place) for place in generator.integers(2, 16, 2))
    pen = ImageDraw.Draw(picture)
    box = (x, y, x + 20, y + (6 if shape == "bar" else 20))
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[colour])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def write_corpus(folder: Path, image_count: int = 40, *, seed: int = 0, corrupt: tuple[int, ...] = ()) -> Path:
    """Write pictures and a list of them with labels and captions; returns the list."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "caption"])
        for row in range(image_count):
            colour, shape = str(generator.choice(list(COLOURS))), str(generator.choice(SHAPES))
            data = draw(colour, shape, generator)
            (folder / f"{row:04d}.png").write_bytes(b"no picture at all" if row in corrupt else data)
            writer.writerow([f"{row:04d}.png", shape, f"a {colour} {shape}"])
    return folder / "images.csv"
