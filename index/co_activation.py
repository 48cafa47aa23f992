"""Which neurons fire on the same images more often than chance would have them: co-activation neighbours.

Two neurons that fire on n_i and n_j of N images, and together on n_ij, have the normalised pointwise mutual information

    NPMI = ln(n_ij N / (n_i n_j)) / -ln(n_ij / N)

in [-1, 1]: 0 is chance, 1 is never one without the other (Bouma 2009, "Normalized (Pointwise) Mutual Information in
Collocation Extraction"). Counts are exact. They are made for a block of neurons at a time, over all shards, so that
memory is bounded by the block (32 MiB of counts) whatever the corpus.

    neighbours = co_activation_neighbours(shards, neuron_count=..., image_count=...)
    index.neighbours.write_neighbours(folder, neighbours)

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from index.activation_counts import neuron_blocks
from index.retrieval.exact import SearchShard

__all__ = ["LEAST_COUNT", "NEIGHBOUR_COUNT", "CoActivation", "add_pair_counts", "co_activation_neighbours"]

NEIGHBOUR_COUNT = 16
"""Neighbours kept per neuron."""
LEAST_COUNT = 5
"""Images on which two neurons must both fire: fewer prove little, and NPMI prefers the rare."""
_BLOCK_NUMBERS = 1 << 22
_CHUNK_PAIRS = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class CoActivation:
    """Every neuron's neighbours, best first, ties by ascending neuron id."""

    ids: Int32[np.ndarray, "neurons neighbours"]
    """Their ids; -1 where a neuron has fewer."""
    npmi: Float32[np.ndarray, "neurons neighbours"]
    """Normalised PMI with each, greater than 0; 0 where a neuron has fewer."""
    counts: Int64[np.ndarray, "neurons neighbours"]
    """Images on which both fire; 0 where a neuron has fewer."""


def co_activation_neighbours(
    shards: Sequence[SearchShard],
    *,
    neuron_count: int,
    image_count: int,
    neighbour_count: int = NEIGHBOUR_COUNT,
    least_count: int = LEAST_COUNT,
) -> CoActivation:
    """Find every neuron's neighbours: those of positive NPMI.

    Args:
        shards: every shard, in any order; may be memory-mapped.
        neuron_count: neurons of the sparse autoencoder.
        image_count: readable images, N.
        neighbour_count: neighbours kept per neuron.
        least_count: images on which both must fire.
    """
    firing = np.zeros(neuron_count, dtype=np.int64)
    for shard in shards:
        firing += np.diff(shard.postings.neuron_starts)
    ids = np.full((neuron_count, neighbour_count), -1, dtype=np.int32)
    npmi = np.zeros((neuron_count, neighbour_count), dtype=np.float32)
    counts = np.zeros((neuron_count, neighbour_count), dtype=np.int64)
    for neurons in neuron_blocks(neuron_count, max(1, _BLOCK_NUMBERS // neuron_count)):
        together = np.zeros((len(neurons), neuron_count), dtype=np.int64)
        for shard in shards:
            add_pair_counts(together, shard, neurons)
        for neuron_id, row in zip(neurons, together, strict=True):
            found = np.flatnonzero(row >= least_count)
            found = found[found != neuron_id]
            scores = _npmi(row[found], int(firing[neuron_id]), firing[found], image_count)
            # Ties are those of the numbers that are stored.
            best = np.lexsort((found, -scores))[:neighbour_count]
            best = best[scores[best] > 0]
            ids[neuron_id, : len(best)] = found[best]
            npmi[neuron_id, : len(best)] = scores[best]
            counts[neuron_id, : len(best)] = row[found[best]]
    return CoActivation(ids=ids, npmi=npmi, counts=counts)


def add_pair_counts(together: Int64[np.ndarray, "block neurons"], shard: SearchShard, neurons: range) -> None:
    """Add to `together` on how many images of the shard each neuron of a block fires with each neuron."""
    starts = shard.postings.neuron_starts[neurons.start : neurons.stop + 1]
    rows = (shard.postings.words[int(starts[0]) : int(starts[-1])] >> 16).astype(np.int64)
    owners = np.repeat(np.arange(len(neurons)), np.diff(starts))
    flat = together.reshape(-1)
    for part in _chunks(shard.offsets[rows + 1] - shard.offsets[rows]):
        begins = shard.offsets[rows[part]]
        lengths = shard.offsets[rows[part] + 1] - begins
        totals = np.cumsum(lengths)
        places = np.repeat(begins - totals + lengths, lengths) + np.arange(int(totals[-1]))
        pairs = np.repeat(owners[part] * together.shape[1], lengths) + shard.neuron_ids[places]
        np.add.at(flat, pairs, 1)


def _chunks(lengths: Int64[np.ndarray, " postings"]) -> Iterator[slice]:
    """Cut postings so that the codes behind a chunk hold about `_CHUNK_PAIRS` entries together."""
    totals = np.cumsum(lengths)
    begin = 0
    while begin < len(lengths):
        done = int(totals[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(totals, done + _CHUNK_PAIRS, side="right")))
        yield slice(begin, end)
        begin = end


def _npmi(
    together: Int64[np.ndarray, " found"], firing: int, others: Int64[np.ndarray, " found"], image_count: int
) -> Float32[np.ndarray, " found"]:
    share = together / image_count
    # Of two neurons that fire on every image, 1 is the limit.
    scores = np.ones(len(together))
    some = share < 1
    lift: Float64[np.ndarray, " found"] = share[some] * image_count / others[some] * image_count / firing
    scores[some] = np.log(lift) / -np.log(share[some])
    return np.clip(scores, -1.0, 1.0).astype(np.float32)
