"""What a neuron's activations over a corpus look like in numbers; knows nothing of files.

All figures are computed from the stored float16 activations, so that a reader finds the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float64, Int64

__all__ = ["QUANTILE_PROBABILITIES", "ActivationStatistics", "activation_statistics", "label_entropy"]

QUANTILE_PROBABILITIES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""Probabilities of the stored quantiles."""


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """Moments and quantiles of one neuron over the images on which it fires. Unit: activation."""

    mean: float
    """Mean; 0 for a dead neuron."""
    std: float
    """Standard deviation (of the population); 0 for a dead neuron."""
    maximum: float
    """Largest; 0 for a dead neuron."""
    quantiles: tuple[float, ...]
    """At `QUANTILE_PROBABILITIES`, each one a stored activation; empty for a dead neuron."""


def activation_statistics(values: Float16[np.ndarray, " firing"]) -> ActivationStatistics:
    """Sum up a neuron's activations, given in descending order."""
    if not len(values):
        return ActivationStatistics(mean=0.0, std=0.0, maximum=0.0, quantiles=())
    exact = values.astype(np.float64)
    ranks = [int(probability * (len(exact) - 1)) for probability in QUANTILE_PROBABILITIES]
    return ActivationStatistics(
        mean=float(exact.mean()),
        std=float(exact.std()),
        maximum=float(exact[0]),
        quantiles=tuple(float(exact[len(exact) - 1 - rank]) for rank in ranks),
    )


def label_entropy(values: Float16[np.ndarray, " firing"], labels: Int64[np.ndarray, " firing"]) -> float | None:
    """Return the entropy in bits of the labels, each weighted by the activations that bear it.

    0 means that the neuron fires on one label alone (Lim et al. 2024, PatchSAE, section 3.2).

    Args:
        values: the neuron's activations.
        labels: the label number of each image; -1 where it has none.

    Returns:
        The entropy, or None where no firing image has a label.
    """
    labelled = labels >= 0
    if not bool(labelled.any()):
        return None
    mass: Float64[np.ndarray, " labels"] = np.bincount(labels[labelled], weights=values[labelled].astype(np.float64))
    shares = mass[mass > 0] / mass.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))
