"""Training losses as pure functions of tensors; knows nothing of modules, optimisers or data.

The auxiliary loss: Gao et al., "Scaling and evaluating sparse autoencoders" (2024), section 2.4 and appendix A.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

AUXILIARY_COEFFICIENT = 1 / 32


def reconstruction_loss(inputs: Float[Tensor, "rows d"], reconstruction: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
    """Mean squared error per coordinate; dimensionless, since inputs have a mean square of one.

    Args:
        inputs: centred and scaled residuals.
        reconstruction: what the autoencoder makes of them.

    Returns:
        A scalar >= 0; 1 is about what predicting the mean costs.
    """
    return (inputs - reconstruction).square().mean()


def auxiliary_loss(
    residual: Float[Tensor, "rows d"], dead_reconstruction: Float[Tensor, "rows d"]
) -> Float[Tensor, ""]:
    """How badly the dead neurons explain what the living ones left over, normalised by its variance.

    Args:
        residual: inputs minus reconstruction; no gradient flows into it.
        dead_reconstruction: the sum of the strongest dead neurons' directions, without the decoder bias.

    Returns:
        A scalar >= 0; 0 where the residual does not vary (nothing is left to explain).
    """
    target = residual.detach()
    variance = (target - target.mean(dim=0)).square().mean()
    error = (target - dead_reconstruction).square().mean()
    is_varied = variance > torch.finfo(variance.dtype).tiny
    return torch.where(is_varied, error / torch.where(is_varied, variance, 1), 0)


def auxiliary_width(dead_count: int, input_width: int) -> int:
    """How many dead neurons each row may use: min(d / 2, dead), and at least one where any is dead."""
    return min(max(input_width // 2, 1), dead_count)
