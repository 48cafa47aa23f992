"""Exact questions to one neuron's postings, whose activations are rounded: what is near a bound is read from the codes.

A posting is within one step (its shard's scale) of the stored activation, so that only those within one step of a
bound can be on its other side; their codes are looked up. Every answer is that of brute force over the stored float16
activations. Knows nothing of expressions or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from index.retrieval.exact import SearchShard
from index.row_sets import among

__all__ = ["activations_on", "histogram", "rows_above"]


def rows_above(shard: SearchShard, neuron_id: int, threshold: float, *, or_equal: bool) -> Int64[np.ndarray, " rows"]:
    """Return the rows of the shard, rising, on which a neuron fires above (or at) a threshold of at least 0."""
    rows = shard.postings.rows(neuron_id).astype(np.int64)
    if threshold == 0:
        return rows
    values = _near_exact(shard, neuron_id, rows, np.array([threshold]))
    return rows[values >= threshold] if or_equal else rows[values > threshold]


def histogram(
    shards: Sequence[SearchShard],
    neuron_id: int,
    edges: Float64[np.ndarray, " edges"],
    *,
    excluded_rows: Int64[np.ndarray, " excluded"] | None = None,
) -> Int64[np.ndarray, " bins"]:
    """Count the images on which a neuron fires, by activation.

    Args:
        shards: what to count in.
        neuron_id: which neuron.
        edges: rising, at least two; a bin holds its lower edge and not its upper one, but for the last, which holds
            both. Images outside all bins are not counted.
        excluded_rows: rows of the index that do not count, rising.
    """
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for shard in shards:
        rows = shard.postings.rows(neuron_id).astype(np.int64)
        values = _near_exact(shard, neuron_id, rows, edges)
        if excluded_rows is not None:
            values = values[~among(rows + shard.start, excluded_rows)]
        counts += np.histogram(values, bins=edges)[0]
    return counts


def activations_on(
    shard: SearchShard, neuron_id: int, rows: Int64[np.ndarray, " rows"]
) -> Float64[np.ndarray, " rows"]:
    """Return a neuron's stored activation on each of some rows of the shard; 0 where it does not fire."""
    begins = shard.offsets[rows]
    lengths = shard.offsets[rows + 1] - begins
    ends = np.cumsum(lengths)
    places = np.repeat(begins - ends + lengths, lengths) + np.arange(int(lengths.sum()))
    hits = shard.neuron_ids[places] == neuron_id
    activations = np.zeros(len(rows))
    activations[np.repeat(np.arange(len(rows)), lengths)[hits]] = shard.values[places[hits]]
    return activations


def _near_exact(
    shard: SearchShard, neuron_id: int, rows: Int64[np.ndarray, " rows"], bounds: Float64[np.ndarray, " bounds"]
) -> Float64[np.ndarray, " rows"]:
    """Return a neuron's activations on its rows: as stored near a bound, as rounded elsewhere."""
    values = shard.postings.values(neuron_id).astype(np.float64)
    doubtful = _is_near(values, bounds, shard.postings.scale)
    values[doubtful] = activations_on(shard, neuron_id, rows[doubtful])
    return values


def _is_near(
    values: Float64[np.ndarray, " values"], bounds: Float64[np.ndarray, " bounds"], step: float
) -> Bool[np.ndarray, " values"]:
    # Half a step is what rounding may do; the rest is for values below half a step, and for float32.
    above = np.searchsorted(bounds, values - step, side="left")
    near: Bool[np.ndarray, " values"] = above < np.searchsorted(bounds, values + step, side="right")
    return near
