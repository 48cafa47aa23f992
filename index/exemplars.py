"""Chooses the images that show what each neuron does; an image is shown once, however often its bytes recur.

Top exemplars are the strongest images; spread exemplars sample the whole range of activations at evenly spaced
quantiles, because top images alone make a neuron look more selective than it is (Bolukbasi et al. 2021, "An
interpretability illusion for BERT").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from index.arrays import map_array
from index.postings import Postings
from index.values import Exemplar, ExemplarKind

__all__ = ["ExemplarStore", "first_rows", "spread_places", "write_exemplars"]

_FOLDER = "exemplars"


def first_rows(digests: list[str]) -> Int64[np.ndarray, " rows"]:
    """Return for each row the first row with the same bytes; rows without a digest stand for themselves."""
    first: dict[str, int] = {}
    return np.array(
        [first.setdefault(digest, row) if digest else row for row, digest in enumerate(digests)], dtype=np.int64
    )


def spread_places(available: int, wanted: int) -> Int64[np.ndarray, " chosen"]:
    """Return at most `wanted` different ranks among `available`, evenly spaced, both ends included."""
    if available <= wanted:
        return np.arange(available, dtype=np.int64)
    return np.round(np.linspace(0, available - 1, wanted)).astype(np.int64)


def write_exemplars(
    folder: Path, postings: Postings, first: Int64[np.ndarray, " rows"], *, top_count: int, spread_count: int
) -> None:
    """Choose and store every neuron's exemplars under `folder`/exemplars.

    Args:
        folder: the index being written.
        postings: every neuron's images, strongest first.
        first: for each row, the first row with the same bytes.
        top_count: strongest images kept per neuron.
        spread_count: images kept per neuron that sample its activations.
    """
    target = folder / _FOLDER
    target.mkdir()
    chosen: dict[ExemplarKind, list[Int64[np.ndarray, " places"]]] = {kind: [] for kind in ExemplarKind}
    for neuron_id in range(postings.neuron_count):
        _, distinct = np.unique(first[postings.rows(neuron_id)], return_index=True)
        distinct = np.sort(distinct).astype(np.int64)
        chosen[ExemplarKind.TOP].append(distinct[:top_count])
        chosen[ExemplarKind.SPREAD].append(distinct[spread_places(len(distinct), spread_count)])
    for kind, places in chosen.items():
        offsets = np.zeros(len(places) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in places], out=offsets[1:])
        np.save(target / f"{kind.value}_offsets.npy", offsets)
        np.save(target / f"{kind.value}_places.npy", np.concatenate(places, dtype=np.int32, casting="same_kind"))


class ExemplarStore:
    """Every neuron's exemplars: places in its postings, memory-mapped."""

    def __init__(self, folder: Path, postings: Postings) -> None:
        """Map the exemplars under `folder`/exemplars.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        source = folder / _FOLDER
        self._postings = postings
        self._offsets: dict[ExemplarKind, Int64[np.ndarray, " neurons_and_one"]] = {}
        self._places: dict[ExemplarKind, Int32[np.ndarray, " exemplars"]] = {}
        for kind in ExemplarKind:
            self._offsets[kind] = map_array(source / f"{kind.value}_offsets.npy", np.int64, 1)
            self._places[kind] = map_array(source / f"{kind.value}_places.npy", np.int32, 1)

    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> list[Exemplar]:
        """Return up to `count` exemplars of a neuron, strongest first; of SPREAD, evenly spaced ones of the stored."""
        rows, values = self._postings.rows(neuron_id), self._postings.values(neuron_id)
        places = self.places(neuron_id, kind)
        places = places[:count] if kind is ExemplarKind.TOP else places[spread_places(len(places), count)]
        return [
            Exemplar(
                row=int(rows[place]),
                value=float(values[place]),
                quantile=self._postings.quantile(neuron_id, float(values[place])),
            )
            for place in places
        ]

    def places(self, neuron_id: int, kind: ExemplarKind) -> Int32[np.ndarray, " exemplars"]:
        """Return where a neuron's exemplars stand in its postings, ascending."""
        offsets = self._offsets[kind]
        return self._places[kind][int(offsets[neuron_id]) : int(offsets[neuron_id + 1])]
