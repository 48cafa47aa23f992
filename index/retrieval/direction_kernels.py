"""Products of a vector with many directions; compiled for the CPU by numba; knows nothing of neurons."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["exact_products", "quantise_rows", "rough_products"]


@njit(nogil=True, cache=True)
@no_type_check
def quantise_rows(directions, rough, scales, rests):
    """Write each direction as 8-bit integers x its own scale.

    Args:
        directions: [F, d] float32.
        rough: [F, d] int8, written.
        scales: [F] float64, written.
        rests: [F] float64, written: Euclidean norm of what the integers leave.
    """
    for row in range(len(directions)):
        largest = np.float64(0.0)
        for column in range(directions.shape[1]):
            largest = max(largest, abs(np.float64(directions[row, column])))
        scale = largest / 127.0 if largest > 0 else 1.0
        square = 0.0
        for column in range(directions.shape[1]):
            value = np.float64(directions[row, column])
            level = np.round(value / scale)
            rough[row, column] = np.int8(level)
            square += (value - level * scale) ** 2
        scales[row], rests[row] = scale, np.sqrt(square)


@njit(nogil=True, cache=True)
@no_type_check
def rough_products(rough, levels, products):
    """Write the integer products of rows of int8 [F, d] with int16 [d], which stay within 32 bits, into int32 [F]."""
    width = len(levels)
    for row in range(len(rough)):
        own = rough[row]
        total = np.int32(0)
        for column in range(width):
            total = np.int32(total + np.int32(np.int32(own[column]) * np.int32(levels[column])))
        products[row] = total


@njit(nogil=True, cache=True)
@no_type_check
def exact_products(directions, vector, rows, products):
    """Write the products of some directions with a vector, each summed in order, in float64.

    Args:
        directions: [F, d] float32.
        vector: [d] float32.
        rows: [r] int64.
        products: [r] float64, written.
    """
    for place in range(len(rows)):
        own = directions[rows[place]]
        total = 0.0
        for column in range(len(vector)):
            total += np.float64(own[column]) * np.float64(vector[column])
        products[place] = total
