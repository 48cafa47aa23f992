"""How alike the images are on which a neuron fires: the MonoSemanticity score, in linear time, streamed over shards.

Pach et al. 2025, "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models": the mean cosine of the
embeddings of all pairs of images, each pair weighted by the product of the neuron's activations on both,

    MS = sum_{i<j} a_i a_j cos(e_i, e_j) / sum_{i<j} a_i a_j
       = (|sum a_i e_i|^2 - sum a_i^2 |e_i|^2) / ((sum a_i)^2 - sum a_i^2)      for embeddings of norm 1.

Activations are taken relative to the neuron's maximum; the scale cancels, and images on which it does not fire weigh
nothing. The embeddings are those that the shards store. Memory is one block of neurons, 128 MiB, whatever the corpus.

    scores = monosemanticity(shards, neuron_count=..., width=...)    # `CodedEmbeddings` of every shard, in order

Knows nothing of files; an index without embeddings has no such score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int32, Int64, Integer

from index.activation_counts import neuron_blocks
from index.retrieval.weighted_sum_kernels import add_weighted_rows, order_by_neuron

__all__ = ["CodedEmbeddings", "MonosemanticitySums", "monosemanticity"]

_BLOCK_NUMBERS = 1 << 24
_CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedEmbeddings:
    """The codes of a shard and its images' embeddings; may be memory-mapped."""

    offsets: Int64[np.ndarray, " rows_and_one"]
    """Where each row begins in the next two."""
    neuron_ids: Integer[np.ndarray, " entries"]
    """Neurons that fire, row after row."""
    values: Float16[np.ndarray, " entries"]
    """Their activations."""
    embeddings: Float16[np.ndarray, "rows embedding"]
    """Each row's embedding at any norm; zero for a quarantined row."""


def monosemanticity(
    shards: Sequence[CodedEmbeddings], *, neuron_count: int, width: int
) -> Float64[np.ndarray, " neurons"]:
    """Score every neuron, in [-1, 1]; NaN for one that fires on fewer than two images.

    Args:
        shards: in the order of the index; a fixed order gives the same last bits.
        neuron_count: neurons of the sparse autoencoder.
        width: length of an embedding.
    """
    scores = []
    for neurons in neuron_blocks(neuron_count, max(1, _BLOCK_NUMBERS // width)):
        sums = MonosemanticitySums(neurons, width)
        for shard in shards:
            sums.add(shard)
        scores.append(sums.scores())
    return np.concatenate(scores) if scores else np.zeros(0)


class MonosemanticitySums:
    """What the score of a block of neurons is made of; shards are added one by one."""

    def __init__(self, neurons: range, width: int) -> None:
        """Begin with nothing.

        Args:
            neurons: the block.
            width: length of an embedding.
        """
        self._neurons = neurons
        self._vectors: Float64[np.ndarray, "block embedding"] = np.zeros((len(neurons), width))
        self._values: Float64[np.ndarray, " block"] = np.zeros(len(neurons))
        self._squares: Float64[np.ndarray, " block"] = np.zeros(len(neurons))
        self._lengths: Float64[np.ndarray, " block"] = np.zeros(len(neurons))
        self._counts: Int64[np.ndarray, " block"] = np.zeros(len(neurons), dtype=np.int64)

    def add(self, shard: CodedEmbeddings) -> None:
        """Add the images of a shard."""
        row_count = len(shard.offsets) - 1
        for start in range(0, row_count, _CHUNK_ROWS):
            offsets = shard.offsets[start : min(start + _CHUNK_ROWS, row_count) + 1]
            self._add_chunk(shard, offsets, _unit_rows(shard.embeddings[start : start + _CHUNK_ROWS]))

    def scores(self) -> Float64[np.ndarray, " block"]:
        """Return each neuron's score; NaN for one that fires on fewer than two images."""
        weights = self._values**2 - self._squares
        # The scale of the activations cancels.
        alike = (self._vectors**2).sum(axis=1) - self._lengths
        enough = (self._counts >= 2) & (weights > 0)
        scores = np.full(len(self._neurons), np.nan)
        scores[enough] = np.clip(alike[enough] / weights[enough], -1.0, 1.0)
        return scores

    def _add_chunk(
        self,
        shard: CodedEmbeddings,
        offsets: Int64[np.ndarray, " rows_and_one"],
        embeddings: Float32[np.ndarray, "rows embedding"],
    ) -> None:
        entries = slice(int(offsets[0]), int(offsets[-1]))
        block, entry_count = len(self._neurons), entries.stop - entries.start
        starts: Int64[np.ndarray, " block_and_one"] = np.zeros(block + 1, dtype=np.int64)
        rows: Int32[np.ndarray, " entries"] = np.empty(entry_count, dtype=np.int32)
        weights: Float32[np.ndarray, " entries"] = np.empty(entry_count, dtype=np.float32)
        values = shard.values[entries].astype(np.float32)
        order_by_neuron(offsets, shard.neuron_ids[entries], values, self._neurons.start, starts, rows, weights)
        add_weighted_rows(starts, rows, weights, embeddings, self._vectors)
        chosen, counts = slice(0, int(starts[-1])), np.diff(starts)
        owners, wide = np.repeat(np.arange(block), counts), weights[chosen].astype(np.float64)
        has_length = np.einsum("rw,rw->r", embeddings, embeddings) > 0.5
        self._values += np.bincount(owners, weights=wide, minlength=block)
        self._squares += np.bincount(owners, weights=wide**2, minlength=block)
        self._lengths += np.bincount(owners, weights=wide**2 * has_length[rows[chosen]], minlength=block)
        self._counts += counts


def _unit_rows(embeddings: Float16[np.ndarray, "rows embedding"]) -> Float32[np.ndarray, "rows embedding"]:
    wide = embeddings.astype(np.float32)
    norms = np.sqrt(np.einsum("rw,rw->r", wide, wide))
    wide /= np.where(norms > 0, norms, np.float32(1))[:, None]
    return wide
