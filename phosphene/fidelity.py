"""How well the SAE explains an image: the share of its residuals that the reconstruction leaves out.

Knows nothing of encoders or names. Fraction of variance unexplained as in Gao et al. 2024, section 2.1 (there the
normalised MSE), with the decoder bias as the mean of the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from phosphene.codes import TokenCodes
from phosphene.sae import SparseAutoencoder

__all__ = ["Fidelity", "fidelities"]


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
    reconstruction = sae.decode(codes)
    error = (residuals - reconstruction).square().sum(dim=(1, 2))
    variance = (residuals - sae.decoder_bias).square().sum(dim=(1, 2)).clamp_min(1e-30)
    fvu = (error / variance).tolist()
    cosine = cosine_similarity(residuals, reconstruction, dim=-1).mean(dim=1).tolist()
    l0 = (codes.values > 0).float().sum(-1).mean(dim=1).tolist()
    norm = residuals.norm(dim=-1).mean(dim=1).tolist()
    cuts = codes.cut_counts.sum(dim=1).tolist()
    return [
        Fidelity(
            fvu=fvu[image], cosine=cosine[image], l0=l0[image], residual_norm=norm[image], cut_count=int(cuts[image])
        )
        for image in range(len(residuals))
    ]
