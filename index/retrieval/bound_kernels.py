"""What a row needs to enter an answer, told by a part of the query's neurons; compiled for the CPU by numba.

Neurons are in an order, of which the first so many are accumulated (the depth). `inside` has the sums of squared
weights before each place, `beyond` those from it on. A bound is linear in a row's norm: (factor of its norm, constant).
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["SLACK", "accumulated_depth", "lowest_sum", "meeting_depth"]

SLACK = 1.0 - 1e-6
"""Relative slack for float32 norms and for roundings of the bounds."""
# Of two sums of at most 2 ** 15 squares, what their difference may lack.
_LOST = 1e-11
# The first neurons are accumulated until a row that may enter must have this part of the score from them.
_PART = 0.4


@njit(nogil=True, cache=True)
@no_type_check
def lowest_sum(inside, beyond, depth, length, worst, is_cosine, unit, hidden):
    """What the accumulated sum of a row that may enter the answer is at least: (factor of its norm, constant)."""
    by_norm, at_least = _bound(inside, beyond, depth, length, worst, is_cosine)
    return np.float32(by_norm / unit), np.float32(at_least / unit - hidden)


@njit(nogil=True, cache=True)
@no_type_check
def _bound(inside, beyond, depth, length, worst, is_cosine):
    """What the accumulated part of a row that may enter the answer is at least: (factor of its norm, constant)."""
    whole, part, rest = inside[-1], inside[depth], beyond[depth]
    if not is_cosine:
        return -np.sqrt(rest) / SLACK, worst
    # With the code at angle a to the part of the query that is accumulated, and b between that part and the query, the
    # product is at most cos(a - b) x the query's norm: a is at most b + t, where cos(t) would just do.
    wanted = min(worst * length, np.sqrt(whole))
    return (part * wanted - np.sqrt(part * rest * max(whole - wanted * wanted, 0.0))) / whole * SLACK, 0.0


@njit(nogil=True, cache=True)
@no_type_check
def meeting_depth(inside, beyond, depth, length, worst, is_cosine, largest_norm):
    """By how many of the accumulated neurons every row that may enter is met: the others alone could not carry it."""
    by_norm, at_least = _bound(inside, beyond, depth, length, worst, is_cosine)
    wanted = (by_norm * largest_norm + at_least) * SLACK
    for met_by in range(1, depth):
        others = max(beyond[met_by] - beyond[depth], 0.0) + _LOST * beyond[met_by]
        if np.sqrt(others) * largest_norm < wanted:
            return met_by
    return depth


@njit(nogil=True, cache=True)
@no_type_check
def accumulated_depth(inside, beyond, length, worst, is_cosine, largest_norm, least):
    """How many neurons to accumulate: the others alone could not carry a row into the answer."""
    for depth in range(max(least, 1), len(inside) - 1):
        by_norm, at_least = _bound(inside, beyond, depth, length, worst, is_cosine)
        if is_cosine:
            if worst > 0 and by_norm >= _PART * worst * length:
                return depth
        elif worst > 0 and by_norm * largest_norm + at_least >= _PART * worst:
            return depth
    return len(inside) - 1
