"""Picks images over the whole range of each neuron's activations, over any number of shards; exact.

The range from the largest activation to the smallest is cut into even steps, and each step gets the image nearest to it
(sae_vis and Neuronpedia sample from such intervals; Bricken et al. 2023, "Towards Monosemanticity"). Most activations
of a neuron are weak, so that even ranks would show little but weak ones. Where a stretch of the range holds too few
images, the places left over go to even ranks among the others.

Two passes over the codes: the first counts how often each neuron takes each stored value, which tells the value at any
rank; the second picks the rows that bear those values, ties by ascending row. Memory is that of a block of neurons.
Knows nothing of files.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from index.activation_counts import VALUE_BITS, VALUE_MASK, ActivationCounts, neuron_blocks, select_neurons
from index.shard_counts import BLOCK_NEURONS, count_shards, shown_entries
from index.shards import Shard, Shards
from index.tops import Tops

__all__ = ["spread_images", "spread_places", "spread_ranks"]


def spread_places(available: int, wanted: int) -> Int64[np.ndarray, " chosen"]:
    """Return at most `wanted` different ranks among `available`, evenly spaced, both ends included."""
    if available <= wanted:
        return np.arange(available, dtype=np.int64)
    return np.round(np.linspace(0, available - 1, wanted)).astype(np.int64)


def spread_ranks(
    values: Float64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"], wanted: int
) -> Int64[np.ndarray, " chosen"]:
    """Return at most `wanted` different ranks, ascending, that sample the range of activations evenly.

    Rank 0 is the strongest image. Each of `wanted` even levels from the largest to the smallest activation takes the
    first image of the value nearest to it, of two the stronger; what values named twice leave over goes to even ranks
    among the rest.

    Args:
        values: the activations that occur, descending.
        counts: images with each.
        wanted: images at most.
    """
    available = int(counts.sum())
    if available <= wanted:
        return np.arange(available, dtype=np.int64)
    levels = np.linspace(values[0], values[-1], wanted)
    above = np.clip(np.searchsorted(-values, -levels, side="right") - 1, 0, len(values) - 1)
    below = np.minimum(above + 1, len(values) - 1)
    nearest = np.where(np.abs(values[below] - levels) < np.abs(values[above] - levels), below, above)
    chosen = (np.cumsum(counts) - counts)[np.unique(nearest)]
    left = spread_places(available - len(chosen), wanted - len(chosen))
    # Ranks among those not chosen, as ranks among all: each chosen one before them counts too.
    others = left + np.searchsorted(chosen - np.arange(len(chosen)), left, side="right")
    return np.sort(np.concatenate([chosen, others])).astype(np.int64)


def spread_images(shards: Shards, shown: Bool[np.ndarray, " rows"], spread_count: int) -> Tops:
    """Return every neuron's images over the range of its activations, strongest first, by row of the index.

    Args:
        shards: every row's code.
        shown: rows that may be picked, and that ranks are counted over.
        spread_count: images per neuron, at most.
    """
    blocks = [
        _spread_block(shards, shown, neurons, spread_count)
        for neurons in neuron_blocks(shards.neuron_count, BLOCK_NEURONS)
    ]
    lengths = np.concatenate([np.diff(block.starts) for block in blocks])
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return Tops(
        starts=starts,
        rows=np.concatenate([block.rows for block in blocks]),
        values=np.concatenate([block.values for block in blocks]),
    )


def _spread_block(shards: Shards, shown: Bool[np.ndarray, " rows"], neurons: range, spread_count: int) -> Tops:
    counted = count_shards(shards, neurons, shown)
    keys, sums = counted.pairs.keys, counted.pairs.sums
    places, ordinals, lengths = _wanted(counted, spread_count)
    rows = np.zeros(len(places), dtype=np.int64)
    before = np.zeros(len(keys), dtype=np.int64)  # Images with each value in the shards gone through.
    for shard in shards:
        shard_keys, shard_rows = _by_key(shard, shown, neurons)
        begins = np.searchsorted(shard_keys, keys)
        here = np.searchsorted(shard_keys, keys, side="right") - begins
        ranks = ordinals - before[places]
        found = (ranks >= 0) & (ranks < here[places])
        rows[found] = shard_rows[(begins[places] + ranks)[found]] + shard.rows.start
        before += here
    assert bool((before == sums).all())
    starts = np.zeros(len(neurons) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    bits = (keys[places] & VALUE_MASK).astype(np.uint16)
    return Tops(starts=starts, rows=rows, values=bits.view(np.float16))


def _wanted(
    counted: ActivationCounts, spread_count: int
) -> tuple[Int64[np.ndarray, " wanted"], Int64[np.ndarray, " wanted"], Int64[np.ndarray, " block"]]:
    """Return the place in the keys and the number among equal values of every wanted image, and how many by neuron."""
    keys, sums = counted.pairs.keys, counted.pairs.sums
    bounds = np.searchsorted(keys, np.arange(len(counted.neurons) + 1, dtype=np.int64) << VALUE_BITS)
    places: list[Int64[np.ndarray, " wanted"]] = []
    ordinals: list[Int64[np.ndarray, " wanted"]] = []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        # Strongest first: from the last key of the neuron to its first.
        bits = (keys[begin:end][::-1] & VALUE_MASK).astype(np.uint16)
        ends = np.cumsum(sums[begin:end][::-1])
        ranks = spread_ranks(bits.view(np.float16).astype(np.float64), sums[begin:end][::-1], spread_count)
        at = np.searchsorted(ends, ranks, side="right")
        places.append(end - 1 - at)
        ordinals.append(ranks - (ends[at] - sums[begin:end][::-1][at]) if len(at) else ranks)
    lengths = np.array([len(part) for part in places], dtype=np.int64)
    return np.concatenate(places).astype(np.int64), np.concatenate(ordinals), lengths


def _by_key(
    shard: Shard, shown: Bool[np.ndarray, " rows"], neurons: range
) -> tuple[Int64[np.ndarray, " entries"], Int64[np.ndarray, " entries"]]:
    """Return neuron and value of the block's entries as keys, ascending, and the row in the shard of each."""
    codes, kept = shard.codes, shown_entries(shard, shown)
    chosen = kept[select_neurons(codes.neuron_ids[kept], neurons)]
    rows = np.searchsorted(codes.offsets, chosen, side="right") - 1
    local = codes.neuron_ids[chosen].astype(np.int64) - neurons.start
    keys = local << VALUE_BITS | codes.values[chosen].view(np.uint16)
    order = np.argsort(keys, kind="stable")
    return keys[order], rows[order].astype(np.int64)
