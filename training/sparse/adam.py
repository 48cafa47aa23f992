"""Adam (Kingma and Ba, 2015) on the weights of an autoencoder whose directions keep unit norm; on the CPU.

The same arithmetic as `torch.optim.Adam`, in one pass over each matrix: a neuron that no gradient touches still moves
by its moments. Knows nothing of losses.
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial

import numpy as np

from training.sparse.gradient_kernels import adam_neurons
from training.sparse.gradients import Gradients, Matrices
from training.sparse.threads import Threads

__all__ = ["Adam"]

_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """The moments of every weight."""

    def __init__(self, weights: Matrices, *, threads: Threads) -> None:
        """Begin with moments of zero for these weights, which `step` updates in place."""
        self._weights = weights
        self._threads = threads
        self.means = Matrices.empty(*weights.directions.shape)
        """First moments."""
        self.squares = Matrices.empty(*weights.directions.shape)
        """Second moments."""

    def step(self, gradients: Gradients, *, step_count: int, learning_rate: float, factor: float) -> None:
        """Update the weights.

        Args:
            gradients: of one batch; directions' parts along themselves taken out.
            step_count: updates so far, this one included; at least 1.
            learning_rate: of this step.
            factor: on every gradient (clipping).
        """
        rate = np.float32(learning_rate / (1 - _DECAYS[0] ** step_count))
        root = np.float32(1 / math.sqrt(1 - _DECAYS[1] ** step_count))
        clip = np.float32(factor)
        every = np.ones(1, bool)
        for field in fields(Matrices):
            name = field.name
            weight, mean, square, gradient = (
                getattr(matrices, name) for matrices in (self._weights, self.means, self.squares, gradients.of)
            )
            is_touched = gradients.is_touched
            if name == "encoder_bias":
                gradient = np.where(is_touched, gradient, 0).astype(np.float32)
            if weight.ndim == 1:
                weight, mean, square, gradient = (array[None] for array in (weight, mean, square, gradient))
                is_touched = every
            arrays = (weight, mean, square, gradient, is_touched)
            run = partial(_adam, arrays, (rate, root, clip), is_unit=name == "directions")
            self._threads.over(len(weight), run)


def _adam(
    arrays: tuple[np.ndarray, ...],
    factors: tuple[np.float32, np.float32, np.float32],
    start: int,
    end: int,
    *,
    is_unit: bool,
) -> None:
    adam_neurons(*arrays, *factors, _DECAYS, np.float32(_EPSILON), is_unit, start, end)
