"""Loss and gradients of a top-k autoencoder from its active neurons alone; knows nothing of optimisers.

One dense product gives the pre-activations; everything after it costs in proportion to the active neurons. The
gradients are those of autograd on a dense code (`training.sparse.torch_learner` is the plain reference).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32
from torch import Tensor

from training.objectives import auxiliary_width
from training.ranks import ALONE, Ranks
from training.sparse.gradient_kernels import (
    decode_nested,
    decode_rows,
    neuron_gradients,
    order_by_neuron,
    project_gradients,
)
from training.sparse.selection import ActiveRows, Selector
from training.sparse.threads import Threads

__all__ = ["Gradients", "Matrices", "Pass", "SparseGradients"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrices:
    """The weights, or their gradients or moments, by neuron; NumPy views of tensors on the CPU."""

    encoder_rows: Float32[np.ndarray, "neurons d"]
    """W_enc transposed."""
    encoder_bias: Float32[np.ndarray, " neurons"]
    """b_enc."""
    directions: Float32[np.ndarray, "neurons d"]
    """W_dec."""
    decoder_bias: Float32[np.ndarray, " d"]
    """b_dec."""

    @classmethod
    def empty(cls, neuron_count: int, width: int) -> Matrices:
        """Zeros of these sizes."""
        return cls(
            encoder_rows=np.zeros((neuron_count, width), np.float32),
            encoder_bias=np.zeros(neuron_count, np.float32),
            directions=np.zeros((neuron_count, width), np.float32),
            decoder_bias=np.zeros(width, np.float32),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """What one batch gave."""

    loss: float
    """Mean squared error per coordinate of the whole autoencoder."""
    active: ActiveRows
    """What was active."""
    norm: float
    """Norm of the gradient over all weights, directions' parts along themselves taken out."""


class Gradients:
    """The gradients of one batch; memory that is used again for the next."""

    def __init__(self, neuron_count: int, width: int) -> None:
        """Have room for the gradients of so many neurons."""
        self.of = Matrices.empty(neuron_count, width)
        self.is_touched: Bool[np.ndarray, " neurons"] = np.zeros(neuron_count, bool)
        """Which neurons have a gradient; the rows of others hold what an earlier batch left."""
        self.squares = np.zeros(neuron_count)


class SparseGradients:
    """Computes the gradients of one autoencoder, batch after batch."""

    def __init__(
        self, weights: Matrices, selector: Selector, *, sizes: tuple[int, ...], threads: Threads, ranks: Ranks = ALONE
    ) -> None:
        """Differentiate these weights, which change in place.

        Args:
            weights: the autoencoder.
            selector: chooses what is active.
            sizes: of nested autoencoders (Matryoshka), the whole last; one size for none.
            threads: run the kernels.
            ranks: who else has a part of each batch.
        """
        self._ranks = ranks
        self._weights = weights
        self._encoder_rows = torch.from_numpy(weights.encoder_rows)
        self._encoder_bias = torch.from_numpy(weights.encoder_bias)
        self._selector = selector
        self._sizes = np.array(sizes, np.int64)
        self._threads = threads
        neuron_count, width = weights.directions.shape
        self.gradients = Gradients(neuron_count, width)
        self._every_neuron = np.arange(neuron_count, dtype=np.int32)

    def compute(
        self, inputs: Float32[Tensor, "rows d"], dead_ids: Int32[np.ndarray, " dead"], *, auxiliary_coefficient: float
    ) -> Pass:
        """The gradients of one batch, left in `gradients`.

        Args:
            inputs: scaled residuals.
            dead_ids: neurons that learn from what is left unexplained.
            auxiliary_coefficient: weight of their loss.
        """
        weights, gradients = self._weights, self.gradients
        targets = inputs.numpy()
        value_count = int(self._ranks.total(float(targets.size)))
        centred = inputs - torch.from_numpy(weights.decoder_bias)
        active = self._selector.select(centred, self._encoder_rows, self._encoder_bias)
        gradients.is_touched[:] = False
        errors, slopes, squares = self._decode(targets, active, value_count)
        self._sum(active, slopes, errors, centred.numpy(), self._every_neuron)
        # Nested errors are summed over the levels: all of them reach the decoder bias, as `errors[0]` holds.
        whole = errors.reshape(-1, *targets.shape)
        bias_gradient = whole[0].sum(axis=0, dtype=np.float64)
        touched = gradients.is_touched
        pull = self._weighted_sum(np.where(touched, gradients.of.encoder_bias, np.float32(0)))
        gradients.of.decoder_bias[:] = bias_gradient - pull
        loss = self._ranks.total(float(squares.sum())) / value_count
        if len(dead_ids) and auxiliary_coefficient:
            residual = self._residual(targets, active)
            self._learn_from_residual(residual, centred, dead_ids, auxiliary_coefficient, value_count)
        self._add_ranks()
        return Pass(loss=loss, active=active, norm=self._norm())

    def _weighted_sum(self, factors: Float32[np.ndarray, " neurons"]) -> Float32[np.ndarray, " d"]:
        """The encoder rows, each times its factor, added up; not by NumPy, whose own threads spin long afterwards."""
        total = torch.empty(self._encoder_rows.shape[1])

        def part(low: int, high: int) -> None:
            torch.mv(self._encoder_rows[:, low:high].T, torch.from_numpy(factors), out=total[low:high])

        self._threads.over(len(total), part)
        return total.numpy()

    def _decode(
        self, targets: np.ndarray, active: ActiveRows, value_count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weights, row_count = self._weights, len(targets)
        slopes = np.empty(len(active.values), np.float32)
        squares = np.empty(row_count)
        scale = np.float32(2 / (value_count * len(self._sizes)))
        if len(self._sizes) == 1:
            errors = np.empty_like(targets)
            self._threads.over(
                row_count,
                lambda start, end: decode_rows(
                    targets, weights.decoder_bias, weights.directions, *active, scale, start, end, errors, slopes,
                    squares,
                ),
            )  # fmt: skip
            return errors, slopes, squares
        errors = np.empty((len(self._sizes), *targets.shape), np.float32)
        self._threads.over(
            row_count,
            lambda start, end: decode_nested(
                targets, weights.decoder_bias, weights.directions, *active, self._sizes, scale, start, end, errors,
                slopes, squares,
            ),
        )  # fmt: skip
        return errors, slopes, squares

    def _sum(
        self, active: ActiveRows, slopes: np.ndarray, errors: np.ndarray, inputs: np.ndarray, neuron_ids: np.ndarray
    ) -> None:
        """Add up what the active rows of every neuron say."""
        starts = np.empty(len(neuron_ids) + 1, np.int64)
        slots = np.empty(len(active.values), np.int64)
        rows = np.empty(len(active.values), np.int32)
        order_by_neuron(active.row_starts, active.neuron_ids, starts, slots, rows)
        gradients = self.gradients
        levels = errors.reshape(-1, *inputs.shape)
        bounds = [0, *self._sizes.tolist()] if len(levels) > 1 else [0, len(neuron_ids)]
        for errors_of_level, low, high in zip(levels, bounds[:-1], bounds[1:], strict=True):
            self._threads.over(
                high - low,
                partial(
                    _sum_neurons, low, starts, slots, rows, active.values, slopes, errors_of_level, inputs, neuron_ids,
                    gradients,
                ),
            )  # fmt: skip

    def _residual(self, targets: np.ndarray, active: ActiveRows) -> Float32[np.ndarray, "rows d"]:
        """What the whole autoencoder leaves unexplained."""
        errors = np.empty_like(targets)
        slopes, squares = np.empty(len(active.values), np.float32), np.empty(len(targets))
        weights = self._weights
        self._threads.over(
            len(targets),
            lambda start, end: decode_rows(
                targets, weights.decoder_bias, weights.directions, *active, np.float32(-1), start, end, errors, slopes,
                squares,
            ),
        )  # fmt: skip
        return errors

    def _learn_from_residual(
        self, residual: np.ndarray, centred: Tensor, dead_ids: np.ndarray, coefficient: float, value_count: int
    ) -> None:
        """Gradients of the auxiliary loss, for the dead neurons alone (Gao et al. 2024, appendix A.2)."""
        mean = residual.sum(axis=0, dtype=np.float64)
        self._ranks.add(mean)
        mean *= residual.shape[1] / value_count
        deviations = residual - mean.astype(np.float32)
        variance = self._ranks.total(float(np.square(deviations).sum(dtype=np.float64))) / value_count
        if not variance > np.finfo(np.float32).tiny:
            return
        weights, width = self._weights, auxiliary_width(len(dead_ids), residual.shape[1])
        ids = torch.from_numpy(dead_ids.astype(np.int64))
        directions = weights.directions[dead_ids]
        selector = Selector(width, is_over_batch=False, threads=self._threads)
        active = selector.select(centred, self._encoder_rows[ids], self._encoder_bias[ids])
        errors = np.empty_like(residual)
        slopes, squares = np.empty(len(active.values), np.float32), np.empty(len(residual))
        scale = np.float32(coefficient * 2 / (value_count * variance))
        nothing = np.zeros(residual.shape[1], np.float32)
        self._threads.over(
            len(residual),
            lambda start, end: decode_rows(
                residual, nothing, directions, *active, scale, start, end, errors, slopes, squares
            ),
        )
        self._sum(active, slopes, errors, centred.numpy(), dead_ids)

    def _add_ranks(self) -> None:
        """Add up the gradients of all parts of the batch."""
        if self._ranks.count == 1:
            return
        gradients, of = self.gradients, self.gradients.of
        for array in (of.encoder_rows, of.encoder_bias, of.directions):
            array[~gradients.is_touched] = 0
        touched = gradients.is_touched.astype(np.int32)
        self._ranks.add(of.encoder_rows, of.encoder_bias, of.directions, of.decoder_bias, touched)
        gradients.is_touched[:] = touched > 0

    def _norm(self) -> float:
        gradients, directions = self.gradients, self._weights.directions
        self._threads.over(
            len(directions),
            lambda start, end: project_gradients(
                directions, gradients.is_touched, start, end, gradients.of.encoder_rows, gradients.of.encoder_bias,
                gradients.of.directions, gradients.squares,
            ),
        )  # fmt: skip
        own = float(np.square(gradients.of.decoder_bias.astype(np.float64)).sum())
        return float(np.sqrt(gradients.squares.sum() + own))


def _sum_neurons(
    low: int,
    starts: np.ndarray,
    slots: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    errors: np.ndarray,
    inputs: np.ndarray,
    neuron_ids: np.ndarray,
    gradients: Gradients,
    start: int,
    end: int,
) -> None:
    neuron_gradients(
        starts, slots, rows, values, slopes, errors, inputs, neuron_ids, low + start, low + end, gradients.is_touched,
        gradients.of.encoder_rows, gradients.of.encoder_bias, gradients.of.directions,
    )  # fmt: skip
