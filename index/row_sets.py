"""Sets of rows of one shard as sorted arrays, or as all rows but a sorted array; knows nothing of neurons.

The complement is never written out until somebody asks for rows: `!55` costs the images on which 55 fires.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

__all__ = ["RowSet", "among"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSet:
    """Rows of a shard: those listed, or all but those listed."""

    listed: Int64[np.ndarray, " listed"]
    """Rising, each once."""
    is_complement: bool = False
    """Whether it is all rows but the listed ones."""

    def __invert__(self) -> RowSet:
        """All other rows."""
        return RowSet(listed=self.listed, is_complement=not self.is_complement)

    def __and__(self, other: RowSet) -> RowSet:
        """Rows in both."""
        if self.is_complement and other.is_complement:
            return RowSet(listed=_union(self.listed, other.listed), is_complement=True)
        if self.is_complement:
            return RowSet(listed=other.listed[~among(other.listed, self.listed)])
        if other.is_complement:
            return RowSet(listed=self.listed[~among(self.listed, other.listed)])
        # The shorter one is looked up in the longer one.
        shorter, longer = sorted((self.listed, other.listed), key=len)
        return RowSet(listed=shorter[among(shorter, longer)])

    def __or__(self, other: RowSet) -> RowSet:
        """Rows in either."""
        if not self.is_complement and not other.is_complement:
            return RowSet(listed=_union(self.listed, other.listed))
        return ~(~self & ~other)

    def count(self, row_count: int) -> int:
        """Return how many of the shard's `row_count` rows are in the set."""
        return row_count - len(self.listed) if self.is_complement else len(self.listed)

    def rows(self, row_count: int) -> Int64[np.ndarray, " rows"]:
        """Return the rows of a shard of `row_count` rows, rising."""
        if not self.is_complement:
            return self.listed
        inside = np.ones(row_count, dtype=bool)
        inside[self.listed] = False
        return np.flatnonzero(inside)


def _union(first: Int64[np.ndarray, " first"], second: Int64[np.ndarray, " second"]) -> Int64[np.ndarray, " union"]:
    return np.union1d(first, second)


def among(rows: Integer[np.ndarray, " rows"], others: Int64[np.ndarray, " others"]) -> Bool[np.ndarray, " rows"]:
    """Tell which rows are among the others, which rise."""
    if not len(others):
        return np.zeros(len(rows), dtype=bool)
    places = np.minimum(np.searchsorted(others, rows), len(others) - 1)
    found: Bool[np.ndarray, " rows"] = others[places] == rows
    return found
