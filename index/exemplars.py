"""Chooses the images that show what each neuron does; an image is shown once, however often its bytes recur.

Top exemplars are the strongest images; spread exemplars sample the whole range of activations in even steps (see
`index.spread`), because top images alone make a neuron look more selective than it is (Bolukbasi et al. 2021, "An
interpretability illusion for BERT").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from index.activation_counts import VALUE_BITS, ActivationCounts, neuron_blocks
from index.arrays import map_array
from index.row_sets import among
from index.shard_counts import BLOCK_NEURONS, count_shards
from index.shards import Shards
from index.spread import spread_images, spread_places
from index.tops import Tops, merge_tops
from index.values import Exemplar, ExemplarKind
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged

__all__ = ["ExemplarStore", "merged_tops", "write_exemplars"]

_FOLDER = "exemplars"


def write_exemplars(
    folder: Path, shards: Shards, first: Bool[np.ndarray, " rows"], *, top_count: int, spread_count: int
) -> None:
    """Choose and store every neuron's exemplars under `folder`/exemplars; memory is that of a block of neurons.

    Args:
        folder: the index being written.
        shards: every row's code, and every shard's tops.
        first: rows that are the first with their bytes.
        top_count: strongest images kept per neuron; at most those of a shard's tops.
        spread_count: images kept per neuron that sample its activations.
    """
    target = folder / _FOLDER
    target.mkdir()
    for kind, chosen in _choose(shards, first, top_count=top_count, spread_count=spread_count).items():
        save_array(target / f"{kind.value}_offsets.npy", chosen.images.starts)
        save_array(target / f"{kind.value}_rows.npy", chosen.images.rows)
        save_array(target / f"{kind.value}_values.npy", chosen.images.values)
        save_array(target / f"{kind.value}_quantiles.npy", chosen.quantiles)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chosen:
    """Every neuron's exemplars of one kind."""

    images: Tops
    quantiles: Float64[np.ndarray, " exemplars"]


def _choose(
    shards: Shards, first: Bool[np.ndarray, " rows"], *, top_count: int, spread_count: int
) -> dict[ExemplarKind, _Chosen]:
    images: dict[ExemplarKind, Tops] = {
        ExemplarKind.TOP: merged_tops(shards, first, limit=top_count),
        ExemplarKind.SPREAD: spread_images(shards, first, spread_count),
    }
    quantiles: dict[ExemplarKind, list[Float64[np.ndarray, " exemplars"]]] = {kind: [] for kind in ExemplarKind}
    for neurons in neuron_blocks(shards.neuron_count, BLOCK_NEURONS):
        counts = count_shards(shards, neurons)
        for kind in ExemplarKind:
            quantiles[kind].append(_shares_below(counts, images[kind]))
    return {kind: _Chosen(images=images[kind], quantiles=np.concatenate(quantiles[kind])) for kind in ExemplarKind}


def merged_tops(shards: Shards, first: Bool[np.ndarray, " rows"], *, limit: int) -> Tops:
    """Merge the tops of all shards, one after the other; rows are those of the index, each image once."""
    merged: Tops | None = None
    for shard in shards:
        part = _shown(shard.tops.moved(shard.rows.start), first)
        merged = merge_tops([part] if merged is None else [merged, part], limit=limit)
    assert merged is not None
    return merged


def _shown(tops: Tops, first: Bool[np.ndarray, " rows"]) -> Tops:
    kept = first[tops.rows]
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    return Tops(starts=before[tops.starts], rows=tops.rows[kept], values=tops.values[kept])


def _shares_below(counts: ActivationCounts, images: Tops) -> Float64[np.ndarray, " exemplars"]:
    """Return the quantile of every exemplar of the block, neuron after neuron."""
    neurons = counts.neurons
    starts = images.starts[neurons.start : neurons.stop + 1]
    bits = np.ascontiguousarray(images.values[int(starts[0]) : int(starts[-1])]).view(np.uint16)
    owners = np.repeat(np.arange(len(neurons)), np.diff(starts))
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts.pairs.sums)])
    firsts = before[np.searchsorted(counts.pairs.keys, np.arange(len(neurons) + 1) << VALUE_BITS)]
    smaller = before[np.searchsorted(counts.pairs.keys, owners << VALUE_BITS | bits)] - firsts[owners]
    quantiles: Float64[np.ndarray, " exemplars"] = smaller / np.diff(firsts)[owners]
    return quantiles


class ExemplarStore:
    """Every neuron's exemplars, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Map the exemplars under `folder`/exemplars.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        source = folder / _FOLDER
        self._images: dict[ExemplarKind, Tops] = {}
        self._quantiles: dict[ExemplarKind, Float64[np.ndarray, " exemplars"]] = {}
        for kind in ExemplarKind:
            starts = map_array(source / f"{kind.value}_offsets.npy", np.int64, 1)
            rows: Int64[np.ndarray, " exemplars"] = map_array(source / f"{kind.value}_rows.npy", np.int64, 1)
            values = map_array(source / f"{kind.value}_values.npy", np.float16, 1)
            quantiles = map_array(source / f"{kind.value}_quantiles.npy", np.float64, 1)
            if not int(starts[-1]) == len(rows) == len(values) == len(quantiles):
                raise ArtefactDamaged(
                    f"{source}: {kind.value}_offsets.npy names {int(starts[-1])} exemplars; there are {len(rows)} "
                    f"rows, {len(values)} values, {len(quantiles)} quantiles: build the index again"
                )
            self._images[kind] = Tops(starts=starts, rows=rows, values=values)
            self._quantiles[kind] = quantiles

    def follows_from(
        self, shards: Shards, first: Bool[np.ndarray, " rows"], *, top_count: int, spread_count: int
    ) -> bool:
        """Tell whether this is what `write_exemplars` writes. Arguments as there."""
        chosen = _choose(shards, first, top_count=top_count, spread_count=spread_count)
        return all(
            np.array_equal(self._quantiles[kind], each.quantiles)
            and all(
                np.array_equal(getattr(self._images[kind], name), getattr(each.images, name))
                for name in ("starts", "rows", "values")
            )
            for kind, each in chosen.items()
        )

    def exemplars(
        self,
        neuron_id: int,
        kind: ExemplarKind,
        count: int,
        *,
        hidden_rows: Int64[np.ndarray, " hidden"] | None = None,
    ) -> list[Exemplar]:
        """Return up to `count` of a neuron's stored exemplars, strongest first; of SPREAD, evenly spaced ones.

        Args:
            neuron_id: the neuron.
            kind: which exemplars.
            count: how many.
            hidden_rows: rows that are none, rising.
        """
        images = self._images[kind]
        rows, values = images.of(neuron_id)
        quantiles = self._quantiles[kind][int(images.starts[neuron_id]) : int(images.starts[neuron_id + 1])]
        left = np.arange(len(rows))
        if hidden_rows is not None and len(hidden_rows):
            left = np.flatnonzero(~among(rows, hidden_rows))
        wanted = left[:count] if kind is ExemplarKind.TOP else left[spread_places(len(left), count)]
        return [
            Exemplar(row=int(rows[place]), value=float(values[place]), quantile=float(quantiles[place]))
            for place in wanted.tolist()
        ]
