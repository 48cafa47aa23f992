"""Sums of sign vectors over codes; compiled for the CPU by numba; see `index.sketch`.

Sums are made in the order of a code's entries, so that no answer depends on how many codes are sketched at a time.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["add_signs"]


@njit(nogil=True, cache=True)
@no_type_check
def add_signs(offsets, neuron_ids, values, signs, out):
    """Write each code's sum of value times sign vector, at length 1; zeros for an empty code.

    Args:
        offsets: [rows + 1] where each code begins in the next two, from 0.
        neuron_ids: [entries].
        values: [entries] float32.
        signs: [F, width] int8: 1, -1, or 0 for a neuron that is left out.
        out: [rows, width] float32, written.
    """
    width = signs.shape[1]
    for row in range(len(offsets) - 1):
        sums = out[row]
        sums[:] = np.float32(0)
        for entry in range(offsets[row], offsets[row + 1]):
            value, own = values[entry], signs[neuron_ids[entry]]
            for place in range(width):
                sums[place] += value * np.float32(own[place])
        square = 0.0
        for place in range(width):
            square += np.float64(sums[place]) * np.float64(sums[place])
        if square > 0:
            scale = np.float32(1.0 / np.sqrt(square))
            for place in range(width):
                sums[place] *= scale
