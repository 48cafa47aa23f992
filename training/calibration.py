"""The one threshold that turns BatchTopK into JumpReLU: found on one held-out half, checked on the other.

Bussmann et al. (2024), section 3: a global threshold such that a residual has k active neurons on average. Knows
nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.errors import NumericError

TOLERANCE = 0.02
"""How far the mean L0 of the other half may lie from k, as a share of k."""

_BLOCK_ROWS = 2048

PreActivations = Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows neurons"]]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and how well it carries over."""

    threshold: float
    """In units of the pre-activation."""
    l0_fitted: float
    """Mean L0 on the half that the threshold was fitted to."""
    l0_checked: float
    """Mean L0 on the other half."""
    l0_error: float
    """Standard error of `l0_checked`."""
    holds: bool
    """Whether `l0_checked` lies within 2 % of k."""


def calibrate(
    pre_activations: PreActivations, fitted: Float[Tensor, "rows d"], checked: Float[Tensor, "rows d"], k: int
) -> Calibration:
    """Find the threshold on `fitted` and measure it on `checked`.

    Args:
        pre_activations: the encoder half of the autoencoder.
        fitted: one held-out half.
        checked: the other half.
        k: the mean L0 to reach.

    Raises:
        NumericError: too few neurons ever exceed zero to reach k.
    """
    threshold = fit_threshold(pre_activations, fitted, k)
    l0 = _active_counts(pre_activations, checked, threshold)
    mean_l0 = float(l0.mean())
    return Calibration(
        threshold=threshold,
        l0_fitted=float(_active_counts(pre_activations, fitted, threshold).mean()),
        l0_checked=mean_l0,
        l0_error=float(l0.std(correction=0)) / len(l0) ** 0.5,
        holds=abs(mean_l0 - k) <= TOLERANCE * k,
    )


def fit_threshold(pre_activations: PreActivations, rows: Float[Tensor, "rows d"], k: int) -> float:
    """The value between the (k x rows)-th largest positive pre-activation and the next one.

    Memory stays at a few times k x rows values, whatever the number of neurons.

    Raises:
        NumericError: fewer than k x rows pre-activations are positive.
    """
    target = k * len(rows)
    pool = torch.empty(0)
    floor = 0.0
    for start in range(0, len(rows), _BLOCK_ROWS):
        values = pre_activations(rows[start : start + _BLOCK_ROWS]).flatten()
        pool = torch.cat([pool, values[values > floor].cpu()])
        if len(pool) > 2 * target:
            pool = pool.topk(target + 1, sorted=False).values
            floor = float(pool.min())
    if len(pool) < target:
        raise NumericError(
            f"only {len(pool) / len(rows):.2f} neurons per residual ever exceed zero on held-out images; "
            f"k is {k}: lower --k, or train longer"
        )
    ordered = pool.topk(min(target + 1, len(pool))).values
    last = float(ordered[target - 1])
    following = float(ordered[target]) if len(ordered) > target else 0.0
    return (last + following) / 2


def _active_counts(
    pre_activations: PreActivations, rows: Float[Tensor, "rows d"], threshold: float
) -> Float[Tensor, " rows"]:
    blocks = [rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS)]
    return torch.cat([(pre_activations(block) > threshold).sum(dim=1).cpu() for block in blocks]).double()
