"""What a neuron's activations over a corpus look like in numbers; `index.activation_counts` computes them.

All figures are computed from the stored float16 activations, so that a reader finds the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUANTILE_PROBABILITIES", "ActivationStatistics"]

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
