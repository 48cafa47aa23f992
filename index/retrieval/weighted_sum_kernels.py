"""Sums of rows, weighted by what each neuron does on them: loops compiled for the CPU; see `index.monosemanticity`.

A block of rows is gone through neuron by neuron, so that a sum stays in the nearest cache while rows come from the next
one.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["add_weighted_rows", "order_by_neuron"]


@njit(nogil=True, cache=True)
@no_type_check
def order_by_neuron(offsets, neuron_ids, values, first, starts, rows, weights):
    """Turn the codes of some rows: entries by neuron, rows rising.

    Args:
        offsets: [rows + 1] where each row begins in the next two.
        neuron_ids: [entries].
        values: [entries] float32.
        first: the first neuron that counts; others are left out.
        starts: [neurons + 1] int64, zero at first; written: where each neuron begins in the next two.
        rows: [entries] int32, written.
        weights: [entries] float32, written.
    """
    count = len(starts) - 1
    begin = offsets[0]
    for entry in range(offsets[-1] - begin):
        neuron = np.int64(neuron_ids[entry]) - first
        if 0 <= neuron < count:
            starts[neuron + 1] += 1
    for neuron in range(count):
        starts[neuron + 1] += starts[neuron]
    places = starts[:-1].copy()
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row] - begin, offsets[row + 1] - begin):
            neuron = np.int64(neuron_ids[entry]) - first
            if 0 <= neuron < count:
                place = places[neuron]
                rows[place], weights[place] = row, values[entry]
                places[neuron] = place + 1


@njit(nogil=True, cache=True)
@no_type_check
def add_weighted_rows(starts, rows, weights, vectors, sums):
    """Add weight x vector of each neuron's rows to its sum; a block's part is summed in float32.

    Args:
        starts: [neurons + 1] where each neuron begins in the next two.
        rows: [entries] int32.
        weights: [entries] float32.
        vectors: [rows, width] float32.
        sums: [neurons, width] float64, added to.
    """
    width = vectors.shape[1]
    part = np.empty(width, dtype=np.float32)
    for neuron in range(len(starts) - 1):
        begin, end = starts[neuron], starts[neuron + 1]
        if begin == end:
            continue
        part[:] = 0
        entry = begin
        # Two rows at a time: the sum is read and written half as often.
        while entry + 1 < end:
            one, other = vectors[rows[entry]], vectors[rows[entry + 1]]
            weight, other_weight = weights[entry], weights[entry + 1]
            for place in range(width):
                part[place] += weight * one[place] + other_weight * other[place]
            entry += 2
        if entry < end:
            one, weight = vectors[rows[entry]], weights[entry]
            for place in range(width):
                part[place] += weight * one[place]
        for place in range(width):
            sums[neuron, place] += part[place]
