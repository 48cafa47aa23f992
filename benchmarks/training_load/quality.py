"""How good trained weights are: held-out FVU at a calibrated threshold, and how many known directions are found.

Everybody's weights are judged alike: one threshold that gives a mean L0 of k on one half of the held-out rows, and what
it gives on the other half. The lowest threshold is zero: no contestant fires on negative pre-activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from training.calibration import calibrate
from training.weights import Weights

__all__ = ["Quality", "fraction_unexplained", "judge", "mean_max_cosine"]

_BLOCK_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Three figures of one training."""

    fvu: float
    """Fraction of variance unexplained on the half of the held-out rows that chose no threshold."""
    mmcs: float
    """Mean over the known directions of the largest cosine with any decoder row."""
    l0: float
    """Mean active neurons on the same half."""


def judge(weights_file: Path, data: Path, k: int) -> Quality:
    """Judge weights as `contestant.compete` leaves them.

    Args:
        weights_file: the .npz file.
        data: folder of `held_out.npy` and `directions.npy`.
        k: mean active neurons to calibrate to.

    Raises:
        NumericError: too few neurons ever fire.
    """
    with np.load(weights_file) as stored:
        weights = Weights(**{name: torch.from_numpy(stored[name]) for name in stored.files})
    held_out = torch.from_numpy(np.load(data / "held_out.npy"))
    fitted, checked = held_out[::2], held_out[1::2]
    found = calibrate(weights.pre_activations, fitted, checked, k)
    return Quality(
        fvu=fraction_unexplained(weights, checked, found.threshold),
        mmcs=mean_max_cosine(torch.from_numpy(np.load(data / "directions.npy")), weights.directions),
        l0=found.l0_checked,
    )


def fraction_unexplained(weights: Weights, rows: Float[Tensor, "rows d"], threshold: float) -> float:
    """Summed squared error of the reconstructions over the summed squares about the mean."""
    error = 0.0
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        pre_activations = weights.pre_activations(block)
        codes = torch.where(pre_activations > threshold, pre_activations, 0)
        error += float((block - codes @ weights.directions - weights.decoder_bias).double().square().sum())
    return error / float((rows - rows.mean(dim=0)).double().square().sum())


def mean_max_cosine(known: Float[Tensor, "directions d"], learnt: Float[Tensor, "neurons d"]) -> float:
    """MMCS; a decoder row of zeros is like nothing."""
    unit = torch.nn.functional.normalize
    return float((unit(known, dim=1) @ unit(learnt, dim=1).T).amax(dim=1).mean())
