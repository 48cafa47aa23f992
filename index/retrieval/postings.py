"""The codes of one shard turned round: for each neuron, the rows on which it fires; knows nothing of files or queries.

A posting is one 32-bit word: the row in the shard, and the activation in 65,535ths of the shard's largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int64, Integer, UInt16, UInt32

from index.retrieval.posting_kernels import count_by_neuron, largest_value, root_sums, scatter_words

__all__ = ["ROW_LIMIT", "ShardPostings", "build_postings", "row_norms"]

ROW_LIMIT = 1 << 16
"""Rows that a shard can hold: a row is 16 bits of a posting."""
_LEVELS = ROW_LIMIT - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardPostings:
    """Each neuron's firing rows of one shard; the arrays may be memory-mapped."""

    neuron_starts: Int64[np.ndarray, " neurons_and_one"]
    """Where each neuron begins in `words`; the last one is their number."""
    words: UInt32[np.ndarray, " entries"]
    """By neuron, rows rising: row in the shard in the upper 16 bits, q in 1..65,535 in the lower ones."""
    scale: float
    """An activation is q x scale, within half a scale (but for those below half a scale, which have q = 1)."""
    row_count: int
    """Rows of the shard; at most `ROW_LIMIT`."""

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return len(self.neuron_starts) - 1

    def rows(self, neuron_id: int) -> UInt16[np.ndarray, " firing"]:
        """Return the rows in the shard on which a neuron fires, rising."""
        return (self._words(neuron_id) >> 16).astype(np.uint16)

    def values(self, neuron_id: int) -> Float32[np.ndarray, " firing"]:
        """Return a neuron's quantised activations on `rows(neuron_id)`."""
        return (self._words(neuron_id) & _LEVELS).astype(np.float32) * np.float32(self.scale)

    def _words(self, neuron_id: int) -> UInt32[np.ndarray, " firing"]:
        return self.words[int(self.neuron_starts[neuron_id]) : int(self.neuron_starts[neuron_id + 1])]


def build_postings(
    offsets: Int64[np.ndarray, " rows_and_one"],
    neuron_ids: Integer[np.ndarray, " entries"],
    values: Float16[np.ndarray, " entries"],
    *,
    neuron_count: int,
) -> ShardPostings:
    """Turn the codes of a shard round.

    Args:
        offsets: where each row begins in the entries; begins with 0.
        neuron_ids: neurons that fire, row after row; each below `neuron_count`, none twice in a row.
        values: their activations; finite and above 0.
        neuron_count: neurons of the sparse autoencoder.

    Raises:
        ValueError: the shard has more rows than a posting can tell.
    """
    row_count = len(offsets) - 1
    if row_count > ROW_LIMIT:
        raise ValueError(f"a shard of {row_count} rows; the limit is {ROW_LIMIT}: make shard_image_count smaller")
    bits = np.ascontiguousarray(values).view(np.uint16)
    scale = float(np.float32((largest_value(bits) or 1.0) / _LEVELS))
    neuron_starts = np.zeros(neuron_count + 1, dtype=np.int64)
    count_by_neuron(neuron_ids, neuron_starts)
    words = np.empty(len(neuron_ids), dtype=np.uint32)
    scatter_words(offsets, neuron_ids, bits, scale, neuron_starts[:-1].copy(), words)
    return ShardPostings(neuron_starts=neuron_starts, words=words, scale=scale, row_count=row_count)


def row_norms(
    offsets: Int64[np.ndarray, " rows_and_one"], values: Float16[np.ndarray, " entries"]
) -> Float32[np.ndarray, " rows"]:
    """Return the Euclidean norm of each row's stored activations; 0 for an empty code."""
    norms = np.empty(len(offsets) - 1, dtype=np.float32)
    bits = np.ascontiguousarray(values).view(np.uint16)
    root_sums(offsets, np.empty(0, dtype=np.int32), bits, np.empty(0, dtype=np.bool_), norms)
    return norms
