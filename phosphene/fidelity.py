"""How well the SAE explains an image: the share of its residuals that the reconstruction leaves out.

Knows nothing of encoders or names. Fraction of variance unexplained as in Gao et al. 2024, section 2.1 (there the
normalised MSE), with the decoder bias as the mean of the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from phosphene.codes import TokenCodes
from phosphene.sae import SparseAutoencoder

__all__ = ["Fidelity", "as_fidelities", "fidelities", "fidelity_figures"]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How far an image's codes can be trusted as an account of its residuals."""

    fvu: float
    """Fraction of variance unexplained over the site's tokens: 0 is perfect, 1 is no better than the decoder bias."""
    cosine: float
    """Mean cosine between residual and reconstruction over the site's tokens, in [-1, 1]."""
    l0: float
    """Mean number of neurons that fire on a token."""
    residual_norm: float
    """Mean Euclidean norm of the residuals."""
    cut_count: int
    """Activations that the code limits cut off the tokens."""


def fidelities(
    sae: SparseAutoencoder, residuals: Float[Tensor, "images tokens width"], codes: TokenCodes
) -> list[Fidelity]:
    """Measure the codes of a batch against the residuals that they stand for.

    Args:
        sae: the autoencoder that made the codes.
        residuals: [images, tokens, width].
        codes: codes with leading shape [images, tokens].

    Returns:
        One record per image.
    """
    return as_fidelities(fidelity_figures(sae, residuals, codes))


def fidelity_figures(
    sae: SparseAutoencoder, residuals: Float[Tensor, "images tokens width"], codes: TokenCodes
) -> Float64[Tensor, "images figures"]:
    """As `fidelities`, left on the device: one column per field of `Fidelity`, in its order."""
    reconstruction = sae.decode(codes)
    error = (residuals - reconstruction).square().sum(dim=(1, 2))
    variance = (residuals - sae.decoder_bias).square().sum(dim=(1, 2)).clamp_min(1e-30)
    figures = (
        error / variance,
        cosine_similarity(residuals, reconstruction, dim=-1).mean(dim=1),
        (codes.values > 0).float().sum(-1).mean(dim=1),
        residuals.norm(dim=-1).mean(dim=1),
        codes.cut_counts.sum(dim=1),
    )
    return torch.stack([figure.double() for figure in figures], dim=1)


def as_fidelities(figures: Float64[Tensor, "images figures"]) -> list[Fidelity]:
    """Read what `fidelity_figures` left, once it is here."""
    return [
        Fidelity(fvu=fvu, cosine=cosine, l0=l0, residual_norm=norm, cut_count=int(cuts))
        for fvu, cosine, l0, norm, cuts in figures.tolist()
    ]
