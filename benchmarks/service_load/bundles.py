"""Bundles to serve: a real encoder with an SAE of random weights, which costs what a trained one costs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phosphene.bundle import save_bundle
from phosphene.codes import CodeLimits
from phosphene.encoder import Site, Tokens, load_encoder
from phosphene.images import prepare
from phosphene.sae import SparseAutoencoder
from phosphene.selection import TopK

__all__ = ["DEIT", "TINY_CLIP", "Recipe", "make_bundle"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which encoder, heard where, by an SAE of which size."""

    encoder: Path
    """A local folder."""
    site: Site
    """Where it is heard."""
    neuron_count: int
    """Neurons of the SAE."""
    k: int
    """How many of them fire on a token."""


DEIT = Recipe(
    encoder=Path("../shared/models/deit-tiny-patch16-224"),
    site=Site(block=10, tokens=Tokens.CLS),
    neuron_count=3072,
    k=32,
)
"""A Vision Transformer that other people trained."""
TINY_CLIP = Recipe(encoder=Path("embedded/tiny-clip"), site=Site(block=5, tokens=Tokens.CLS), neuron_count=128, k=20)
"""The encoder of `make demo`, with an SAE of the demo's size."""


def make_bundle(recipe: Recipe, folder: Path, photos: Sequence[bytes]) -> Path:
    """Write the bundle anew; returns its folder.

    Args:
        recipe: what to make.
        folder: where.
        photos: the SAE is centred on their mean residual, or every image would light up the same neurons.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(recipe.encoder)
    pixels = np.stack([prepare(photo, encoder.preprocessing).pixels for photo in photos])
    with torch.inference_mode():
        mean = encoder.residuals(torch.from_numpy(pixels), recipe.site).flatten(0, 1).mean(dim=0)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(recipe.neuron_count, len(mean), generator=generator)
    directions = torch.nn.functional.normalize(weights, dim=1)
    sae = SparseAutoencoder(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(recipe.neuron_count),
        directions=directions,
        decoder_bias=mean.clone(),
        selection=TopK(recipe.k),
    )
    save_bundle(
        folder,
        encoder=encoder,
        encoder_source=recipe.encoder,
        site=recipe.site,
        sae=sae,
        limits=CodeLimits(),
        training={"weights": "random"},
    )
    return folder
