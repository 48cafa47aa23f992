"""How much activation of each neuron falls on each label, summed over shards exactly; gives the label entropy.

A stored float16 is a whole multiple of 2^-24, so that masses are integers and their sum does not depend on the order
of the shards (exact up to a sum of 5e11 per neuron and label). Knows nothing of files or of labels' words.

    masses = merge_masses([label_masses(offsets, ids, values, labels, neurons=block) for ... in shards])
    masses.entropies()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float64, Int64, Integer

from index.activation_counts import select_neurons
from index.keyed_sums import KeyedSums, merge_sums, sum_by_key

__all__ = ["LabelMasses", "label_masses", "merge_masses"]

_LABEL_BITS = 32
_UNITS = 2.0**24


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMasses:
    """Activation by label, for a block of neurons."""

    neurons: range
    """The block."""
    masses: KeyedSums
    """Keys are (neuron - neurons.start) << 32 | label number; sums are activations in units of 2^-24."""

    def entropies(self) -> Float64[np.ndarray, " block"]:
        """Return each neuron's entropy in bits; NaN where no firing image has a label.

        0 means that the neuron fires on one label alone (Lim et al. 2024, PatchSAE, section 3.2).
        """
        owners = self.masses.keys >> _LABEL_BITS
        mass = self.masses.sums.astype(np.float64)
        totals = np.bincount(owners, weights=mass, minlength=len(self.neurons))
        shares = mass / totals[owners]
        entropies = -np.bincount(owners, weights=shares * np.log2(shares), minlength=len(self.neurons))
        return np.where(totals > 0, np.maximum(entropies, 0.0), np.nan)


def label_masses(
    offsets: Int64[np.ndarray, " rows_and_one"],
    neuron_ids: Integer[np.ndarray, " entries"],
    values: Float16[np.ndarray, " entries"],
    labels: Int64[np.ndarray, " rows"],
    *,
    neurons: range,
) -> LabelMasses:
    """Sum the activations of a block of neurons by label over the codes of a shard.

    Args:
        offsets: where each row begins in the next two.
        neuron_ids: neurons that fire, row after row.
        values: their activations.
        labels: each row's label number, the same for a label in all shards, below 2^32; -1 where it has none.
        neurons: the block.
    """
    chosen = select_neurons(neuron_ids, neurons)
    rows = np.searchsorted(offsets, chosen, side="right") - 1
    labelled = labels[rows] >= 0
    chosen, rows = chosen[labelled], rows[labelled]
    keys = (neuron_ids[chosen].astype(np.int64) - neurons.start) << _LABEL_BITS | labels[rows]
    amounts = (values[chosen].astype(np.float64) * _UNITS).astype(np.int64)
    return LabelMasses(neurons=neurons, masses=sum_by_key(keys, amounts))


def merge_masses(parts: Sequence[LabelMasses]) -> LabelMasses:
    """Add up the masses of several shards for one block (at least one part)."""
    return LabelMasses(neurons=parts[0].neurons, masses=merge_sums([part.masses for part in parts]))
