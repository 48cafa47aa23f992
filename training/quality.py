"""How good an autoencoder is on residuals that it was not trained on; knows nothing of training.

Fraction of variance unexplained (FVU): summed squared error over the summed squared distance from the mean, as the
normalised MSE of Gao et al. (2024), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.sae import SparseAutoencoder

_BLOCK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures over one set of residuals."""

    fvu: float
    """Fraction of variance unexplained: 0 is perfect, 1 no better than the mean."""
    explained_variance: float
    """1 - variance of the error / variance of the residuals; differs from 1 - FVU where the error has a mean."""
    l0: float
    """Mean number of active neurons per residual."""
    dead_share: float
    """Share of neurons that fire on none of the residuals."""
    row_count: int
    """Residuals measured."""
    cut_share: float = 0.0
    """Share of residuals with more active neurons than `token_code_limit`: their codes are cut."""


def measure_quality(
    sae: SparseAutoencoder, residuals: Float[Tensor, "rows d"], *, mean: Float[Tensor, " d"], token_code_limit: int
) -> Quality:
    """Measure the inference rule, block by block.

    Args:
        sae: the autoencoder as it ships.
        residuals: at least one row, in the unit of the encoder.
        mean: mean of the training residuals.
        token_code_limit: as in `CodeLimits`.
    """
    error_squares = variance = 0.0
    error_sum = torch.zeros(residuals.shape[1], dtype=torch.float64)
    residual_sum = torch.zeros_like(error_sum)
    active_count = cut_count = 0
    fired = torch.zeros(sae.neuron_count, dtype=torch.bool)
    for start in range(0, len(residuals), _BLOCK_ROWS):
        block = residuals[start : start + _BLOCK_ROWS]
        codes = sae.encode(block, limit=token_code_limit)
        error = (block - sae.decode(codes)).double()
        centred = (block - mean).double()
        error_squares += float(error.square().sum())
        variance += float(centred.square().sum())
        error_sum += error.sum(dim=0)
        residual_sum += centred.sum(dim=0)
        active = codes.values > 0
        active_count += int(active.sum())
        cut_count += int((codes.cut_counts > 0).sum())
        fired[codes.neuron_ids[active]] = True
    row_count = len(residuals)
    error_variance = error_squares - float(error_sum.square().sum()) / row_count
    residual_variance = variance - float(residual_sum.square().sum()) / row_count
    return Quality(
        fvu=error_squares / max(variance, 1e-30),
        explained_variance=1 - error_variance / max(residual_variance, 1e-30),
        l0=active_count / row_count,
        dead_share=1 - int(fired.sum()) / sae.neuron_count,
        row_count=row_count,
        cut_share=cut_count / row_count,
    )
