"""How often each neuron took each stored value: what exact figures over many shards are made of.

Stored activations are positive float16 numbers, of which there are 31,743: a neuron's activations over any number of
images are at most that many (value, count) pairs. Pairs add up exactly, so that moments and quantiles over a corpus
depend neither on how it is cut into shards nor on the order in which they are read. Memory is bounded by the neurons
looked at together: go through them in blocks.

    counts = merge_counts([count_activations(ids, values, neurons=block) for ids, values in shards])
    counts.statistics(neuron_id)

Knows nothing of files, rows or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float64, Int64, Integer

from index.keyed_sums import KeyedSums, merge_sums, sum_by_key
from index.statistics import QUANTILE_PROBABILITIES, ActivationStatistics

__all__ = [
    "VALUE_BITS",
    "VALUE_MASK",
    "ActivationCounts",
    "count_activations",
    "merge_counts",
    "neuron_blocks",
    "select_neurons",
]

VALUE_BITS = 15
"""Bits of a stored activation: a positive float16."""
VALUE_MASK = (1 << VALUE_BITS) - 1


def neuron_blocks(neuron_count: int, block_neurons: int) -> Iterator[range]:
    """Yield the neurons in blocks of at most `block_neurons`, ascending."""
    for start in range(0, neuron_count, block_neurons):
        yield range(start, min(start + block_neurons, neuron_count))


def select_neurons(neuron_ids: Integer[np.ndarray, " entries"], neurons: range) -> Int64[np.ndarray, " selected"]:
    """Return the places of the entries whose neuron is in the block."""
    return np.flatnonzero((neuron_ids >= neurons.start) & (neuron_ids < neurons.stop))


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationCounts:
    """The activations of a block of neurons, as (value, count) pairs."""

    neurons: range
    """The block."""
    pairs: KeyedSums
    """Keys are (neuron - neurons.start) << 15 | the bits of the float16 value; sums are counts."""

    @property
    def firing_counts(self) -> Int64[np.ndarray, " block"]:
        """Images on which each neuron of the block fires."""
        totals = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.pairs.sums)])
        return np.diff(totals[self._starts()])

    def statistics(self, neuron_id: int) -> ActivationStatistics:
        """Sum up a neuron of the block."""
        values, counts = self._pairs_of(neuron_id)
        firing_count = int(counts.sum())
        if not firing_count:
            return ActivationStatistics(mean=0.0, std=0.0, maximum=0.0, quantiles=())
        mean = float(counts @ values) / firing_count
        ranks = [int(probability * (firing_count - 1)) for probability in QUANTILE_PROBABILITIES]
        places = np.searchsorted(np.cumsum(counts), ranks, side="right")
        return ActivationStatistics(
            mean=mean,
            std=float(np.sqrt(counts @ (values - mean) ** 2 / firing_count)),
            maximum=float(values[-1]),
            quantiles=tuple(float(values[place]) for place in places),
        )

    def share_below(self, neuron_id: int, value: float) -> float:
        """Return the share of the neuron's firing images with an activation smaller than `value`; 0 for a dead one."""
        values, counts = self._pairs_of(neuron_id)
        below = int(np.searchsorted(values, value, side="left"))
        return int(counts[:below].sum()) / int(counts.sum()) if len(counts) else 0.0

    def _pairs_of(self, neuron_id: int) -> tuple[Float64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
        first = (neuron_id - self.neurons.start) << VALUE_BITS
        begin, end = (int(place) for place in np.searchsorted(self.pairs.keys, [first, first + VALUE_MASK + 1]))
        bits = (self.pairs.keys[begin:end] & VALUE_MASK).astype(np.uint16)
        return bits.view(np.float16).astype(np.float64), self.pairs.sums[begin:end]

    def _starts(self) -> Int64[np.ndarray, " block_and_one"]:
        firsts = np.arange(len(self.neurons) + 1, dtype=np.int64) << VALUE_BITS
        return np.searchsorted(self.pairs.keys, firsts).astype(np.int64)


def count_activations(
    neuron_ids: Integer[np.ndarray, " entries"], values: Float16[np.ndarray, " entries"], *, neurons: range
) -> ActivationCounts:
    """Count the stored values of a block of neurons in the codes of a shard.

    Args:
        neuron_ids: neurons that fire, row after row.
        values: their activations, greater than 0.
        neurons: the block.
    """
    chosen = select_neurons(neuron_ids, neurons)
    local = (neuron_ids[chosen] - neurons.start).astype(np.int64)
    bits = np.ascontiguousarray(values[chosen]).view(np.uint16)
    # Half as wide a key sorts twice as fast.
    width = np.uint32 if len(neurons) <= 1 << (32 - VALUE_BITS) else np.int64
    keys = (local << VALUE_BITS | bits).astype(width)
    return ActivationCounts(neurons=neurons, pairs=sum_by_key(keys))


def merge_counts(parts: Sequence[ActivationCounts]) -> ActivationCounts:
    """Add up the counts of several shards for one block (at least one part)."""
    return ActivationCounts(neurons=parts[0].neurons, pairs=merge_sums([part.pairs for part in parts]))
