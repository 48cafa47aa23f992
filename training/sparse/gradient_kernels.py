"""Loops over active neurons: decoding, gradients, Adam; compiled for the CPU by numba; knows nothing of variants.

Every kernel works on a range of rows or neurons and writes to that range alone; sums run in a fixed order, so that
results depend neither on the number of threads nor on timing. Arrays are C-contiguous; B rows, F neurons, width d.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = [
    "adam_neurons",
    "decode_nested",
    "decode_rows",
    "neuron_gradients",
    "order_by_neuron",
    "project_gradients",
]

# Sums may be reordered, which vector instructions need; NaN and infinity keep their meaning.
_FAST = {"contract", "reassoc"}


@njit(nogil=True, cache=True)
@no_type_check
def order_by_neuron(row_starts, active_ids, neuron_starts, slots, rows):
    """The same active neurons by neuron, rows rising.

    Args:
        row_starts: [B + 1].
        active_ids: [active].
        neuron_starts: [F + 1] int64, written.
        slots: [active] int64, written: where each stands by row.
        rows: [active] int32, written: its row.
    """
    neuron_starts[:] = 0
    for slot in range(row_starts[-1]):
        neuron_starts[active_ids[slot] + 1] += 1
    for neuron in range(len(neuron_starts) - 1):
        neuron_starts[neuron + 1] += neuron_starts[neuron]
    for row in range(len(row_starts) - 1):
        for slot in range(row_starts[row], row_starts[row + 1]):
            place = neuron_starts[active_ids[slot]]
            slots[place] = slot
            rows[place] = row
            neuron_starts[active_ids[slot]] += 1
    for neuron in range(len(neuron_starts) - 1, 0, -1):
        neuron_starts[neuron] = neuron_starts[neuron - 1]
    neuron_starts[0] = 0


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def decode_rows(
    targets, bias, directions, row_starts, active_ids, active_values, scale, start, end, errors, slopes, squares
):
    """Reconstruct, and differentiate scale / 2 x the squared error by the reconstruction and by the activations.

    Args:
        targets: [B, d] what is to be reconstructed.
        bias: [d] added to each reconstruction.
        directions: [F, d].
        row_starts: [B + 1].
        active_ids: [active].
        active_values: [active].
        scale: of the derivatives.
        start: first row.
        end: row after the last.
        errors: [B, d], written: scale x (reconstruction - target).
        slopes: [active], written: derivative by each activation.
        squares: [B] float64, written: squared error of each row, without scale.
    """
    width = targets.shape[1]
    for row in range(start, end):
        error = errors[row]
        target = targets[row]
        for column in range(width):
            error[column] = bias[column] - target[column]
        for slot in range(row_starts[row], row_starts[row + 1]):
            value = active_values[slot]
            direction = directions[active_ids[slot]]
            for column in range(width):
                error[column] += value * direction[column]
        square = np.float32(0)
        for column in range(width):
            square += error[column] * error[column]
            error[column] *= scale
        squares[row] = square
        for slot in range(row_starts[row], row_starts[row + 1]):
            direction = directions[active_ids[slot]]
            slope = np.float32(0)
            for column in range(width):
                slope += error[column] * direction[column]
            slopes[slot] = slope


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def decode_nested(
    targets, bias, directions, row_starts, active_ids, active_values, sizes, scale, start, end, errors, slopes, squares
):
    """As `decode_rows`, for the sum over nested autoencoders of scale / 2 x the squared error.

    Args:
        targets: [B, d].
        bias: [d].
        directions: [F, d].
        row_starts: [B + 1].
        active_ids: [active], rising in each row.
        active_values: [active].
        sizes: [P] neurons of each nested autoencoder, rising; the last is F.
        scale: of the derivatives.
        start: first row.
        end: row after the last.
        errors: [P, B, d], written: scale x the summed errors of this nested autoencoder and of those that hold it.
        slopes: [active], written.
        squares: [B] float64, written: squared error of the whole autoencoder.
    """
    width = targets.shape[1]
    depth = len(sizes)
    for row in range(start, end):
        target = targets[row]
        slot = row_starts[row]
        for level in range(depth):
            error = errors[level, row]
            if level == 0:
                for column in range(width):
                    error[column] = bias[column] - target[column]
            else:
                before = errors[level - 1, row]
                for column in range(width):
                    error[column] = before[column]
            while slot < row_starts[row + 1] and active_ids[slot] < sizes[level]:
                value = active_values[slot]
                direction = directions[active_ids[slot]]
                for column in range(width):
                    error[column] += value * direction[column]
                slot += 1
        square = np.float32(0)
        whole = errors[depth - 1, row]
        for column in range(width):
            square += whole[column] * whole[column]
            whole[column] *= scale
        squares[row] = square
        for level in range(depth - 2, -1, -1):
            error = errors[level, row]
            above = errors[level + 1, row]
            for column in range(width):
                error[column] = scale * error[column] + above[column]
        level = 0
        for slot in range(row_starts[row], row_starts[row + 1]):
            while active_ids[slot] >= sizes[level]:
                level += 1
            error = errors[level, row]
            direction = directions[active_ids[slot]]
            slope = np.float32(0)
            for column in range(width):
                slope += error[column] * direction[column]
            slopes[slot] = slope


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def neuron_gradients(
    neuron_starts,
    slots,
    rows,
    values,
    slopes,
    errors,
    inputs,
    neuron_ids,
    start,
    end,
    is_touched,
    encoder_gradient,
    bias_gradient,
    direction_gradient,
):
    """Sum the gradients of encoder rows, encoder biases and directions over each neuron's active rows.

    Args:
        neuron_starts: [n + 1], from `order_by_neuron`.
        slots: [active].
        rows: [active].
        values: [active] activations by row.
        slopes: [active] derivatives by row.
        errors: [B, d] derivatives by the reconstruction.
        inputs: [B, d] what the encoder reads.
        neuron_ids: [n] rows of the gradients that the n neurons stand for.
        start: first of the n.
        end: the one after the last.
        is_touched: [F] bool; a neuron that is not touched yet gets its gradient written, not added to.
        encoder_gradient: [F, d].
        bias_gradient: [F].
        direction_gradient: [F, d].
    """
    width = inputs.shape[1]
    for neuron in range(start, end):
        if neuron_starts[neuron] == neuron_starts[neuron + 1]:
            continue
        place = neuron_ids[neuron]
        to_encoder = encoder_gradient[place]
        to_direction = direction_gradient[place]
        if not is_touched[place]:
            is_touched[place] = True
            bias_gradient[place] = 0
            for column in range(width):
                to_encoder[column] = 0
                to_direction[column] = 0
        total = np.float32(0)
        for index in range(neuron_starts[neuron], neuron_starts[neuron + 1]):
            value = values[slots[index]]
            slope = slopes[slots[index]]
            error = errors[rows[index]]
            row = inputs[rows[index]]
            total += slope
            for column in range(width):
                to_encoder[column] += slope * row[column]
                to_direction[column] += value * error[column]
        bias_gradient[place] += total


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def project_gradients(directions, is_touched, start, end, encoder_gradient, bias_gradient, direction_gradient, squares):
    """Take the part along each direction out of its gradient; each neuron's squared gradient norm goes to `squares`."""
    width = directions.shape[1]
    for neuron in range(start, end):
        squares[neuron] = 0
        if not is_touched[neuron]:
            continue
        direction = directions[neuron]
        gradient = direction_gradient[neuron]
        to_encoder = encoder_gradient[neuron]
        along = np.float32(0)
        for column in range(width):
            along += gradient[column] * direction[column]
        square = bias_gradient[neuron] * bias_gradient[neuron]
        for column in range(width):
            gradient[column] -= along * direction[column]
            square += gradient[column] * gradient[column] + to_encoder[column] * to_encoder[column]
        squares[neuron] = square


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def adam_neurons(weight, mean, square, gradient, is_touched, rate, root, clip, decays, epsilon, is_unit, start, end):
    """One step of Adam (Kingma and Ba, 2015) on the rows of a matrix; a row that is not touched has gradient 0.

    Args:
        weight: [F, d], updated.
        mean: [F, d] first moments, updated.
        square: [F, d] second moments, updated.
        gradient: [F, d].
        is_touched: [F].
        rate: learning rate over the first moment's bias correction.
        root: 1 / the square root of the second moment's bias correction.
        clip: factor on the gradient.
        decays: the two decay rates.
        epsilon: added to the root.
        is_unit: whether rows are brought back to unit norm.
        start: first row.
        end: row after the last.
    """
    width = weight.shape[1]
    first, second = np.float32(decays[0]), np.float32(decays[1])
    rest_first, rest_second = np.float32(1 - decays[0]) * clip, np.float32(1 - decays[1]) * clip * clip
    for row in range(start, end):
        weights, means, squares, slopes = weight[row], mean[row], square[row], gradient[row]
        if is_touched[row]:
            for column in range(width):
                slope = slopes[column]
                means[column] = first * means[column] + rest_first * slope
                squares[column] = second * squares[column] + rest_second * slope * slope
                weights[column] -= rate * means[column] / (np.sqrt(squares[column]) * root + epsilon)
        else:
            for column in range(width):
                means[column] *= first
                squares[column] *= second
                weights[column] -= rate * means[column] / (np.sqrt(squares[column]) * root + epsilon)
        if is_unit:
            norm = np.float32(0)
            for column in range(width):
                norm += weights[column] * weights[column]
            if norm > 0:
                scale = np.float32(1) / np.sqrt(norm)
                for column in range(width):
                    weights[column] *= scale
