"""Exact nearest directions: what the product of a vector with all of them answers; knows nothing of files or FAISS.

Every direction is read in 8 bits; those that could be in the answer, with all that rounding may hide, are multiplied as
they are. Memory is read at a quarter of the bytes, which is what such a search costs.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64, Int64

from index.retrieval.direction_kernels import exact_products, quantise_rows, rough_products

__all__ = ["NearestDirections"]

_INT32_LARGEST = (1 << 31) - 1
_INT16_LARGEST = (1 << 15) - 1
# For the roundings of the bounds themselves.
_SLACK = 1e-9


class NearestDirections:
    """Finds the directions with the largest product with a vector; several threads may ask at a time."""

    def __init__(self, directions: Float32[np.ndarray, "neurons width"]) -> None:
        """Keep `directions`, and a copy in 8 bits; at unit norm the products of a unit vector are cosines."""
        self._directions = np.ascontiguousarray(directions)
        count, width = directions.shape
        self._rough = np.empty((count, width), dtype=np.int8)
        self._scales, self._rests = np.empty(count), np.empty(count)
        quantise_rows(self._directions, self._rough, self._scales, self._rests)
        squares = np.einsum("nd,nd->n", self._rough, self._rough, dtype=np.float64)
        self._rough_norms = self._scales * np.sqrt(squares)
        self._level_limit = min(_INT16_LARGEST, _INT32_LARGEST // (127 * max(1, width)))

    def nearest(
        self, vector: Float32[np.ndarray, " width"], count: int
    ) -> tuple[Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]:
        """Return up to `count` directions (at least 1) and their products, largest first, ties by ascending place."""
        count = min(count, len(self._scales))
        vector = np.array(vector, dtype=np.float32)
        candidates = self._candidates(vector.astype(np.float64), count)
        products = np.empty(len(candidates))
        exact_products(self._directions, vector, candidates, products)
        order = np.lexsort((candidates, -products))[:count]
        return candidates[order], products[order]

    def _candidates(self, vector: Float64[np.ndarray, " width"], count: int) -> Int64[np.ndarray, " candidates"]:
        """Those whose product may be among the `count` largest."""
        largest = float(np.abs(vector).max(initial=0.0))
        if largest == 0 or count == len(self._scales):
            return np.arange(len(self._scales))
        unit = largest / self._level_limit
        levels = np.round(vector / unit)
        integers = np.empty(len(self._scales), dtype=np.int32)
        rough_products(self._rough, levels.astype(np.int16), integers)
        products = integers * (self._scales * unit)
        left, length = math.sqrt(float(np.sum((vector - levels * unit) ** 2))), math.sqrt(float(vector @ vector))
        # x.v = rough x . rough v + (rest of x) . v + rough x . (rest of v), by Cauchy and Schwarz.
        hidden = self._rests * length + self._rough_norms * left
        hidden += _SLACK * (self._rough_norms * length + hidden)
        sure = np.partition(products - hidden, len(products) - count)[len(products) - count]
        return np.flatnonzero(products + hidden >= sure)
