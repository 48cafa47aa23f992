"""Integer sums by integer key that merge exactly: in any order, in any grouping; knows nothing of what is summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

__all__ = ["KeyedSums", "merge_sums", "sum_by_key"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyedSums:
    """One integer for each of some keys."""

    keys: Int64[np.ndarray, " entries"]
    """Ascending, each once."""
    sums: Int64[np.ndarray, " entries"]
    """The sum of each key."""


def sum_by_key(keys: Integer[np.ndarray, " items"], amounts: Int64[np.ndarray, " items"] | None = None) -> KeyedSums:
    """Sum amounts by key, or count the keys where no amounts are given."""
    if amounts is None:
        ordered = np.sort(keys)
        firsts = _firsts(ordered)
        sums = np.diff(np.append(firsts, len(ordered))).astype(np.int64)
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        firsts = _firsts(ordered)
        sums = np.add.reduceat(amounts[order], firsts) if len(firsts) else np.zeros(0, dtype=np.int64)
    return KeyedSums(keys=ordered[firsts].astype(np.int64), sums=sums)


def _firsts(ordered: Integer[np.ndarray, " items"]) -> Int64[np.ndarray, " groups"]:
    changes = np.ones(len(ordered), dtype=bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    return np.flatnonzero(changes)


def merge_sums(parts: Sequence[KeyedSums]) -> KeyedSums:
    """Add sums up key by key; memory is that of the parts, twice."""
    if not parts:
        return KeyedSums(keys=np.zeros(0, dtype=np.int64), sums=np.zeros(0, dtype=np.int64))
    return sum_by_key(np.concatenate([part.keys for part in parts]), np.concatenate([part.sums for part in parts]))
