"""How far from zero residuals lie, in units of how much they vary: what folding the mean costs in float32.

At export the mean goes into the biases (docs/design.md, section 5): a pre-activation becomes the small difference of
two numbers that grow with |mean| / std, and so does its rounding error. Knows nothing of weights.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from training.progress import Progress

OFFSET_LIMIT = 10.0
"""Ratio from which a warning is due: one of float32's seven digits is lost, and pre-activations come near the 1e-5 of
the largest that codes may differ by."""


def offset_ratio(mean: Float[Tensor, " d"], scale: float) -> float:
    """The norm of the mean over the norm of a typical deviation from it.

    Args:
        mean: what residuals are centred by; zero where they are learnt from as they are.
        scale: root of the mean square of a centred coordinate.
    """
    return float(mean.double().square().mean().sqrt()) / scale


def warn_of_offset(mean: Float[Tensor, " d"], scale: float, progress: Progress) -> None:
    """Report an event where folding the mean costs digits; arguments as `offset_ratio`."""
    ratio = offset_ratio(mean, scale)
    if ratio > OFFSET_LIMIT:
        progress.event(
            "the mean is large against the variation of the residuals",
            mean_over_std=ratio,
            digits_lost=round(math.log10(ratio), 1),
            digits_of_float32=7.2,
        )
