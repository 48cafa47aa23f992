"""What hidden rows contribute to a neuron's counts, so that it can be taken off; knows nothing of why they are hidden.

Counts as built, less those of the hidden rows, are counts over the others: exact, and as cheap as the hidden rows are
few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64

from index.posting_values import activations_on
from index.postings import stored_bound
from index.retrieval.exact import SearchShard
from index.row_sets import among
from index.shards import Shards
from index.values import Exemplar

__all__ = ["HiddenActivations", "visible_maxima"]


class HiddenActivations:
    """Every neuron's activations on hidden rows."""

    def __init__(self, shards: Shards, hidden_rows: Int64[np.ndarray, " hidden"]) -> None:
        """Read the codes of the hidden rows."""
        codes = [shards.code(int(row)) for row in hidden_rows]
        neuron_ids = np.concatenate([np.zeros(0, np.int32), *(code.neuron_ids for code in codes)])
        values = np.concatenate([np.zeros(0, np.float32), *(code.values for code in codes)]).astype(np.float64)
        order = np.lexsort((values, neuron_ids))
        self._values: Float64[np.ndarray, " entries"] = values[order]
        self._starts = np.searchsorted(neuron_ids[order], np.arange(shards.neuron_count + 1))

    def of(self, neuron_id: int) -> Float64[np.ndarray, " firing"]:
        """Return a neuron's activations on hidden rows, rising."""
        return self._values[int(self._starts[neuron_id]) : int(self._starts[neuron_id + 1])]

    def without(self, exemplar: Exemplar, neuron_id: int, *, firing: int) -> Exemplar:
        """Return an exemplar with its quantile among the visible images of its neuron, which has `firing` in all."""
        if not len(self.of(neuron_id)):
            return exemplar
        # As built, a quantile is a count over `firing`.
        below = round(exemplar.quantile * firing)
        return replace(exemplar, quantile=self.share_below(neuron_id, exemplar.value, below=below, firing=firing))

    def share_below(self, neuron_id: int, value: float, *, below: int, firing: int) -> float:
        """Return the share of a neuron's visible images with a smaller activation; 0 where it fires on none.

        Args:
            neuron_id: the neuron.
            value: an activation.
            below: images with a smaller one, hidden ones included.
            firing: images on which it fires, hidden ones included.
        """
        hidden = self.of(neuron_id)
        visible = firing - len(hidden)
        # As stored: to float16, like what `below` was counted from.
        return (below - int(np.searchsorted(hidden, stored_bound(value)))) / visible if visible else 0.0


def visible_maxima(
    shards: Sequence[SearchShard],
    maxima: Float64[np.ndarray, " neurons"],
    hidden: HiddenActivations,
    hidden_rows: Int64[np.ndarray, " hidden"],
) -> Float64[np.ndarray, " neurons"]:
    """Return every neuron's largest activation on a row that is not hidden; 0 where it fires on none.

    Args:
        shards: the whole index.
        maxima: largest activations over all rows.
        hidden: activations on the hidden rows.
        hidden_rows: rows of the index, rising.
    """
    if not len(hidden_rows):
        return maxima
    visible = maxima.copy()
    for neuron_id in range(len(maxima)):
        own = hidden.of(neuron_id)
        if len(own) and own[-1] >= maxima[neuron_id]:
            visible[neuron_id] = max(_largest(shard, neuron_id, hidden_rows) for shard in shards)
    return visible


def _largest(shard: SearchShard, neuron_id: int, hidden_rows: Int64[np.ndarray, " hidden"]) -> float:
    rows = shard.postings.rows(neuron_id).astype(np.int64)
    values = shard.postings.values(neuron_id)
    kept = ~among(rows + shard.start, hidden_rows)
    rows, values = rows[kept], values[kept]
    if not len(rows):
        return 0.0
    # A posting is within one scale of the stored activation.
    candidates = rows[values >= float(values.max()) - 2 * shard.postings.scale]
    return float(activations_on(shard, neuron_id, candidates).max())
