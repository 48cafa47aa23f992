"""Counts of values by bucket: what a histogram holds, without its name; knows nothing of Prometheus.

One search and one lock for a value, and one lock for a whole batch of values.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

__all__ = ["Distribution"]


class Distribution:
    """How many values fell into each bucket, and their sum; safe to use from several threads."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin empty.

        Args:
            bounds: upper bound of each bucket, itself included, ascending; one more bucket holds what is above.
        """
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count a value."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count several values."""
        bounds, counts = self._bounds, self._counts
        with self._lock:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
                self._sum += value

    def read(self) -> tuple[list[int], float]:
        """The count of each bucket, the one above the bounds last, and the sum of all values."""
        with self._lock:
            return list(self._counts), self._sum
