"""Loops that turn the codes of a shard round; compiled for the CPU by numba; knows nothing of files or of queries.

float16 goes through as its bits, which numba can read: `unpacked` gives their value exactly.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["count_by_neuron", "largest_value", "root_sums", "scatter_words", "unpacked"]

# What a float16 with this exponent is worth per unit of its significand.
_UNITS = 2.0 ** (np.maximum(np.arange(32), 1) - 25.0)


@njit(nogil=True, cache=True, inline="always")
@no_type_check
def unpacked(bits):
    """The value of a positive finite float16, exactly, from its bits."""
    exponent = bits >> 10
    return ((bits & 0x3FF) + (1024 if exponent else 0)) * _UNITS[exponent & 31]


@njit(nogil=True, cache=True)
@no_type_check
def count_by_neuron(neuron_ids, neuron_starts):
    """Write where each neuron's part begins.

    Args:
        neuron_ids: [entries].
        neuron_starts: [F + 1] int64, zero; written.
    """
    for neuron in neuron_ids:
        neuron_starts[neuron + 1] += 1
    for neuron in range(len(neuron_starts) - 1):
        neuron_starts[neuron + 1] += neuron_starts[neuron]


@njit(nogil=True, cache=True)
@no_type_check
def largest_value(bits):
    """The largest of positive float16 values, given as bits: their order is that of the values; 0 for none."""
    largest = np.uint16(0)
    for value in bits:
        largest = max(largest, value)
    return unpacked(largest)


@njit(nogil=True, cache=True)
@no_type_check
def scatter_words(offsets, neuron_ids, bits, scale, places, words):
    """Write each entry's posting to its neuron's part, rows rising.

    Args:
        offsets: [rows + 1].
        neuron_ids: [entries].
        bits: [entries] uint16: float16 values.
        scale: a quantised value's unit.
        places: [F] int64: where each neuron's next posting goes; used up.
        words: [entries] uint32, written.
    """
    per_unit = 1.0 / scale
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row], offsets[row + 1]):
            quantised = np.uint32(min(max(unpacked(bits[entry]) * per_unit + 0.5, 1.0), 65535.0))
            place = places[neuron_ids[entry]]
            words[place] = np.uint32(row << 16) | quantised
            places[neuron_ids[entry]] = place + 1


@njit(nogil=True, cache=True)
@no_type_check
def root_sums(offsets, neuron_ids, bits, is_left_out, norms):
    """Write each row's Euclidean norm over the neurons that are not left out.

    Args:
        offsets: [rows + 1].
        neuron_ids: [entries].
        bits: [entries] uint16: float16 values.
        is_left_out: [F] bool; of length 0 where none is.
        norms: [rows] float32, written.
    """
    for row in range(len(offsets) - 1):
        total = 0.0
        for entry in range(offsets[row], offsets[row + 1]):
            if len(is_left_out) == 0 or not is_left_out[neuron_ids[entry]]:
                value = unpacked(bits[entry])
                total += value * value
        norms[row] = np.sqrt(total)
