"""Centring and scaling of residuals, and folding both into the weights at export; knows nothing of training.

The rule is section 5 of docs/design.md: x -> (x - mean) / scale; the decoder bias becomes mean + scale * b, encoder
bias and threshold are multiplied by scale, the matrices stay. Activations come out multiplied by scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.errors import NumericError


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """x -> (x - mean) / scale."""

    mean: Float[Tensor, " d"]
    """Mean residual of the training rows."""
    scale: float
    """Root of the mean square of a centred coordinate; > 0."""

    def apply(self, residuals: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Residuals as the training loop sees them: mean zero, mean square one."""
        return (residuals - self.mean) / self.scale

    def fold_decoder_bias(self, decoder_bias: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The decoder bias in units of the residual."""
        return self.mean + self.scale * decoder_bias

    def to(self, device: torch.device) -> Scaling:
        """The same scaling with its mean on `device`."""
        return Scaling(mean=self.mean.to(device), scale=self.scale)


def make_scaling(mean: Float[Tensor, " d"], mean_square: float) -> Scaling:
    """Scaling from the moments of the training rows.

    Args:
        mean: mean residual.
        mean_square: mean over rows and coordinates of (x - mean)^2.

    Raises:
        NumericError: the residuals do not vary, so there is nothing to learn.
    """
    if not mean_square > 1e-12 * max(float(mean.square().mean()), 1e-20):
        raise NumericError(
            f"the residuals do not vary: their mean square about the mean is {mean_square:.3g}. "
            "Choose another site, or a corpus of different images."
        )
    return Scaling(mean=mean, scale=mean_square**0.5)
