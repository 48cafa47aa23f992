"""Counts of the activations of a block of neurons over all shards; memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int64

from index.activation_counts import ActivationCounts, count_activations, merge_counts
from index.shards import Shard, Shards

__all__ = ["BLOCK_NEURONS", "count_shards", "merge_few", "shown_entries"]

T = TypeVar("T")

BLOCK_NEURONS = 1024
"""Neurons that are counted together."""
_MERGED_PARTS = 16


def count_shards(shards: Shards, neurons: range, shown: Bool[np.ndarray, " rows"] | None = None) -> ActivationCounts:
    """Count the stored activations of a block of neurons, over the rows `shown` alone where they are given."""
    return merge_few((_count(shard, neurons, shown) for shard in shards), merge_counts)


def merge_few(parts: Iterable[T], merge: Callable[[Sequence[T]], T]) -> T:
    """Merge at least one part, a few at a time."""
    waiting: list[T] = []
    for part in parts:
        waiting.append(part)
        if len(waiting) == _MERGED_PARTS:
            waiting = [merge(waiting)]
    return merge(waiting)


def shown_entries(shard: Shard, shown: Bool[np.ndarray, " rows"]) -> Int64[np.ndarray, " entries"]:
    """Return the places of a shard's entries in the rows of the index that are shown."""
    rows = shown[shard.rows.start : shard.rows.stop]
    return np.flatnonzero(np.repeat(rows, np.diff(shard.codes.offsets)))


def _count(shard: Shard, neurons: range, shown: Bool[np.ndarray, " rows"] | None) -> ActivationCounts:
    codes = shard.codes
    if shown is None or bool(shown[shard.rows.start : shard.rows.stop].all()):
        return count_activations(codes.neuron_ids, codes.values, neurons=neurons)
    kept = shown_entries(shard, shown)
    return count_activations(codes.neuron_ids[kept], codes.values[kept], neurons=neurons)
