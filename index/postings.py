"""The codes turned round: for each neuron, the images on which it fires, strongest first; knows nothing of images.

`postings/offsets.npy` says where each neuron's part of `rows.npy` and `values.npy` begins.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int32, Int64
from numpy.lib.format import open_memmap

from index.arrays import map_array
from index.codes_store import CodesStore
from phosphene.errors import ArtefactDamaged

__all__ = ["Postings", "write_postings"]

_FOLDER = "postings"


def write_postings(folder: Path, codes: CodesStore, neuron_count: int) -> None:
    """Turn the codes round, in blocks: memory does not grow with the corpus.

    Args:
        folder: the index being written.
        codes: the codes of every row.
        neuron_count: neurons of the sparse autoencoder; every neuron id is smaller.
    """
    target = folder / _FOLDER
    target.mkdir()
    counts = np.zeros(neuron_count, dtype=np.int64)
    for start, stop in codes.row_blocks():
        counts += np.bincount(_block(codes, start, stop), minlength=neuron_count)
    offsets = np.zeros(neuron_count + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    rows = open_memmap(target / "rows.npy", mode="w+", dtype=np.int32, shape=(codes.entry_count,))
    values = open_memmap(target / "values.npy", mode="w+", dtype=np.float16, shape=(codes.entry_count,))
    _scatter(codes, offsets, rows, values)
    for neuron_id in range(neuron_count):
        part = slice(int(offsets[neuron_id]), int(offsets[neuron_id + 1]))
        order = np.lexsort((rows[part], -values[part]))
        rows[part], values[part] = rows[part][order], values[part][order]
    rows.flush()
    values.flush()
    np.save(target / "offsets.npy", offsets)


def _block(codes: CodesStore, start: int, stop: int) -> Int32[np.ndarray, " entries"]:
    return codes.neuron_ids[int(codes.offsets[start]) : int(codes.offsets[stop])]


def _scatter(
    codes: CodesStore,
    offsets: Int64[np.ndarray, " neurons_and_one"],
    rows: Int32[np.ndarray, " entries"],
    values: Float16[np.ndarray, " entries"],
) -> None:
    next_place = offsets[:-1].copy()
    for start, stop in codes.row_blocks():
        neuron_ids = _block(codes, start, stop)
        lengths = np.diff(codes.offsets[start : stop + 1])
        block_rows = np.repeat(np.arange(start, stop, dtype=np.int32), lengths)
        block_values = codes.values[int(codes.offsets[start]) : int(codes.offsets[stop])]
        order = np.argsort(neuron_ids, kind="stable")
        counts = np.bincount(neuron_ids, minlength=len(next_place))
        first_of_group = np.cumsum(counts) - counts
        sorted_ids = neuron_ids[order]
        places = next_place[sorted_ids] + np.arange(len(order)) - first_of_group[sorted_ids]
        rows[places], values[places] = block_rows[order], block_values[order]
        next_place += counts


class Postings:
    """Each neuron's firing images, memory-mapped."""

    offsets: Int64[np.ndarray, " neurons_and_one"]
    """Where each neuron begins in the rows and values."""

    def __init__(self, folder: Path) -> None:
        """Map the postings under `folder`/postings.

        Raises:
            ArtefactDamaged: the arrays do not fit together.
        """
        source = folder / _FOLDER
        self.offsets = map_array(source / "offsets.npy", np.int64, 1)
        self._rows: Int32[np.ndarray, " entries"] = map_array(source / "rows.npy", np.int32, 1)
        self._values: Float16[np.ndarray, " entries"] = map_array(source / "values.npy", np.float16, 1)
        if not int(self.offsets[-1]) == len(self._rows) == len(self._values):
            raise ArtefactDamaged(
                f"{source}: offsets.npy names {int(self.offsets[-1])} entries; rows.npy has {len(self._rows)}, "
                f"values.npy {len(self._values)}: build the index again"
            )

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return len(self.offsets) - 1

    def rows(self, neuron_id: int) -> Int32[np.ndarray, " firing"]:
        """Return the rows on which a neuron fires, strongest first, ties by ascending row."""
        return self._rows[int(self.offsets[neuron_id]) : int(self.offsets[neuron_id + 1])]

    def values(self, neuron_id: int) -> Float16[np.ndarray, " firing"]:
        """Return a neuron's activations on `rows(neuron_id)`, descending."""
        return self._values[int(self.offsets[neuron_id]) : int(self.offsets[neuron_id + 1])]

    def quantile(self, neuron_id: int, value: float) -> float:
        """Return the share of a neuron's firing images with a smaller activation, in [0, 1]; 0 for a dead neuron.

        The value is rounded to float16 first, so that an image of the corpus meets its own stored activation.
        """
        values = self.values(neuron_id)
        if not len(values):
            return 0.0
        rounded = float(np.float16(min(value, float(np.finfo(np.float16).max))))
        not_smaller = bisect_right(values, -rounded, key=lambda stored: -float(stored))
        return (len(values) - not_smaller) / len(values)
