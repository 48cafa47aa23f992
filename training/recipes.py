"""Recipes: the published settings of the field's vision autoencoders, and ours, by name.

A recipe is a value: encoder, site, autoencoder and optimisation, all of which the command line may override. What a
paper leaves open stays open here. Knows nothing of corpora, files or the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from phosphene.encoder import Site, Tokens
from phosphene.errors import SettingError
from training.requests import SaeRequest, TrainingRequest
from training.settings import BiasInit, InputScaling
from training.variants import VariantName

__all__ = [
    "Recipe",
    "RecipeName",
    "deit",
    "he_captioner",
    "hugofry_clip_l14_layer22_x64",
    "pach_batchtopk_clip_l14_336",
    "pach_matryoshka_clip_l14_336",
    "recipe_of",
    "tiny",
]

PACH_BLOCKS = (11, 17, 22, 23)
"""Blocks, counted from 0, whose class token Pach et al. listen to; None stands for the projected embedding."""
_EMBEDDED_ENCODER = Path(__file__).resolve().parents[1] / "embedded" / "tiny-clip"


class RecipeName(StrEnum):
    """The names on the command line."""

    HUGOFRY_CLIP_L14_LAYER22_X64 = "hugofry_clip_l14_layer22_x64"
    PACH_BATCHTOPK_CLIP_L14_336 = "pach_batchtopk_clip_l14_336"
    PACH_MATRYOSHKA_CLIP_L14_336 = "pach_matryoshka_clip_l14_336"
    HE_CAPTIONER = "he_captioner"
    TINY = "tiny"
    DEIT = "deit"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train on what."""

    name: RecipeName
    """The name on the command line."""
    paper: str
    """Where it comes from."""
    encoder: str | None
    """Hub id, or a local folder in the Hugging Face layout; None where the recipe leaves it open."""
    revision: str | None = None
    """Commit of a hub id; None is its newest."""
    site: Site | None
    """Where in the encoder to listen; None where the recipe leaves it open."""
    sae: SaeRequest
    """The autoencoder."""
    training: TrainingRequest
    """The optimisation."""


def hugofry_clip_l14_layer22_x64() -> Recipe:
    """Hugo Fry, "Towards Multimodal Interpretability" (2024): the first SAE on a vision transformer.

    His run (mats_sae_training_for_ViTs, main.py) has block_layer -2 of CLIP ViT-L/14 and hooks the output of
    `vision_model.encoder.layers[-2]`: the residual after block 22 of 24, counted from 0, which is `hidden_states[23]`;
    its class token; 2,621,440 images of ImageNet in batches of 1,024. No decay, no gradient clipping.
    """
    return Recipe(
        name=RecipeName.HUGOFRY_CLIP_L14_LAYER22_X64,
        paper="Fry 2024",
        encoder="openai/clip-vit-large-patch14",
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
        site=Site(block=22, tokens=Tokens.CLS),
        sae=SaeRequest(
            expansion=64,
            variant=VariantName.RELU,
            sparsity=8e-5,
            inputs=InputScaling.RAW,
            is_error_normalised=True,
            has_ghost_gradients=True,
        ),
        training=TrainingRequest(
            step_count=2560,
            batch_rows=1024,
            learning_rate=4e-4,
            warmup_steps=500,
            decay_share=0.0,
            gradient_clip=math.inf,
            bias_init=BiasInit.GEOMETRIC_MEDIAN,
        ),
    )


def pach_batchtopk_clip_l14_336(*, expansion: int = 64, k: int = 20, block: int | None = 22) -> Recipe:
    """Pach et al., "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models" (2025), BatchTopK.

    Trained with dictionary_learning: learning rate 2e-4 / sqrt(neurons / 2^14), 1,000 steps of warm-up, batches of
    4,096, 110,000 steps, a decay that starts at the last step, gradients clipped at 1, decoder bias at the geometric
    median. It scales inputs to unit mean squared norm without centring; here they are also centred, which the
    decoder bias undoes.

    Args:
        expansion: neurons per residual dimension, 1 to 64.
        k: active neurons per token, 1 to 50.
        block: 11, 17, 22 or 23, counted from 0; None is the embedding after the projection.

    Raises:
        SettingError: a parameter that the paper does not have.
    """
    return Recipe(
        name=RecipeName.PACH_BATCHTOPK_CLIP_L14_336,
        paper="Pach et al. 2025",
        encoder="openai/clip-vit-large-patch14-336",
        revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        site=_pach_site(block),
        sae=_pach_sae(VariantName.BATCHTOPK, expansion, k, prefixes=None),
        training=_pach_training(),
    )


def pach_matryoshka_clip_l14_336(*, expansion: int = 64, k: int = 20, block: int | None = 22) -> Recipe:
    """The same with Matryoshka groups of 1/16, 1/8, 1/4 and 9/16 of the neurons: nested sizes 1/16, 3/16, 7/16, 1.

    Args:
        expansion: see `pach_batchtopk_clip_l14_336`.
        k: the same.
        block: the same.

    Raises:
        SettingError: a parameter that the paper does not have.
    """
    return Recipe(
        name=RecipeName.PACH_MATRYOSHKA_CLIP_L14_336,
        paper="Pach et al. 2025",
        encoder="openai/clip-vit-large-patch14-336",
        revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        site=_pach_site(block),
        sae=_pach_sae(VariantName.MATRYOSHKA, expansion, k, prefixes=(1 / 16, 3 / 16, 7 / 16)),
        training=_pach_training(),
    )


def he_captioner() -> Recipe:
    """He's autoencoder on a captioner: ReLU, plain mean squared error, 1e-3 times the mean L1 norm, expansion 32.

    It was started from a published SAE of GPT-2 and listens to a captioner's decoder, a site that encoders here do
    not have yet: encoder and site are left open.
    """
    return Recipe(
        name=RecipeName.HE_CAPTIONER,
        paper="He",
        encoder=None,
        site=None,
        sae=SaeRequest(
            expansion=32,
            variant=VariantName.RELU,
            sparsity=1e-3,
            inputs=InputScaling.RAW,
            is_error_normalised=False,
            has_ghost_gradients=False,
        ),
        training=TrainingRequest(),
    )


def tiny() -> Recipe:
    """The embedded encoder and the autoencoder of `make demo`: seconds on a laptop."""
    return Recipe(
        name=RecipeName.TINY,
        paper="embedded/README.md",
        encoder=str(_EMBEDDED_ENCODER),
        site=Site(block=5, tokens=Tokens.CLS),
        sae=SaeRequest(neuron_count=128, k=20, variant=VariantName.TOPK),
        training=TrainingRequest(step_count=1000),
    )


def deit() -> Recipe:
    """DeiT-Tiny's class token two blocks before the end, four neurons per dimension: minutes on a laptop."""
    return Recipe(
        name=RecipeName.DEIT,
        paper="Touvron et al. 2021 (encoder)",
        encoder="facebook/deit-tiny-patch16-224",
        site=Site(block=10, tokens=Tokens.CLS),
        sae=SaeRequest(expansion=4, k=16, variant=VariantName.BATCHTOPK),
        training=TrainingRequest(),
    )


def recipe_of(name: RecipeName) -> Recipe:
    """The recipe of this name, its parameters at their defaults."""
    match name:
        case RecipeName.HUGOFRY_CLIP_L14_LAYER22_X64:
            return hugofry_clip_l14_layer22_x64()
        case RecipeName.PACH_BATCHTOPK_CLIP_L14_336:
            return pach_batchtopk_clip_l14_336()
        case RecipeName.PACH_MATRYOSHKA_CLIP_L14_336:
            return pach_matryoshka_clip_l14_336()
        case RecipeName.HE_CAPTIONER:
            return he_captioner()
        case RecipeName.TINY:
            return tiny()
        case RecipeName.DEIT:
            return deit()
        case _:
            assert_never(name)


def _pach_site(block: int | None) -> Site:
    if block is None:
        return Site(block=None, tokens=Tokens.EMBEDDING)
    if block not in PACH_BLOCKS:
        raise SettingError(f"block is {block}; the recipe has blocks {PACH_BLOCKS}, or None after the projection")
    return Site(block=block, tokens=Tokens.CLS)


def _pach_sae(variant: VariantName, expansion: int, k: int, *, prefixes: tuple[float, ...] | None) -> SaeRequest:
    if not 1 <= expansion <= 64:
        raise SettingError(f"expansion is {expansion}; the recipe has 1 to 64 neurons per dimension")
    if not 1 <= k <= 50:
        raise SettingError(f"k is {k}; the recipe has 1 to 50 active neurons")
    return SaeRequest(expansion=expansion, k=k, variant=variant, prefixes=prefixes)


def _pach_training() -> TrainingRequest:
    return TrainingRequest(
        step_count=110_000,
        batch_rows=4096,
        learning_rate_anchor=2e-4 / math.sqrt(1024 / 2**14),
        warmup_steps=1000,
        decay_share=0.0,
        gradient_clip=1.0,
        bias_init=BiasInit.GEOMETRIC_MEDIAN,
    )
