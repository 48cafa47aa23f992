"""The strongest images of every neuron, found shard by shard and merged.

The merge is exact, and neither its order nor a repeat changes it: the strongest of all are among the strongest of each
part, ties go by lower row, and an image counts once however often it is handed in. `write_tops` keeps a shard's own
under `tops/`. Knows nothing of images' bytes: the same bytes in two rows are two images here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int64, Integer, UInt16

from index.arrays import map_array
from index.retrieval.top_kernels import merge_sorted, strongest
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged

__all__ = ["TOP_LIMIT", "Tops", "merge_tops", "read_tops", "top_images", "write_tops"]

TOP_LIMIT = 128
"""Images kept per neuron."""
_FOLDER = "tops"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tops:
    """Every neuron's strongest images, strongest first, ties by ascending row."""

    starts: Int64[np.ndarray, " neurons_and_one"]
    """Where each neuron begins in the next two."""
    rows: Integer[np.ndarray, " tops"]
    """Rows; of a shard, stored in two bytes."""
    values: Float16[np.ndarray, " tops"]
    """The activations there."""

    def of(self, neuron_id: int) -> tuple[Integer[np.ndarray, " tops"], Float16[np.ndarray, " tops"]]:
        """Return a neuron's rows and activations."""
        part = slice(int(self.starts[neuron_id]), int(self.starts[neuron_id + 1]))
        return self.rows[part], self.values[part]

    def moved(self, first_row: int) -> Tops:
        """Return the same with rows counted from elsewhere: a shard's rows become the index's."""
        return Tops(starts=self.starts, rows=self.rows.astype(np.int64) + first_row, values=self.values)


def top_images(
    offsets: Int64[np.ndarray, " rows_and_one"],
    neuron_ids: Integer[np.ndarray, " entries"],
    values: Float16[np.ndarray, " entries"],
    *,
    neuron_count: int,
    limit: int = TOP_LIMIT,
) -> Tops:
    """Find the strongest images of every neuron in the codes of a shard.

    Args:
        offsets: where each row begins in the next two.
        neuron_ids: neurons that fire, row after row.
        values: their activations, greater than 0.
        neuron_count: every neuron id is smaller.
        limit: images kept per neuron.
    """
    bits = np.empty((neuron_count, limit), dtype=np.uint16)
    rows = np.empty((neuron_count, limit), dtype=np.int32)
    counts = np.zeros(neuron_count, dtype=np.int64)
    strongest(np.ascontiguousarray(offsets), np.ascontiguousarray(neuron_ids), _bits(values), bits, rows, counts)
    kept = np.arange(limit) < counts[:, None]
    return Tops(starts=_starts(counts), rows=rows[kept].astype(np.int64), values=bits[kept].view(np.float16))


def merge_tops(parts: Sequence[Tops], *, limit: int = TOP_LIMIT) -> Tops:
    """Merge the tops of parts whose rows are counted from one place (at least one part, equal numbers of neurons)."""
    return reduce(partial(_merge_two, limit=limit), parts[1:], _cut(parts[0], limit))


def _merge_two(one: Tops, other: Tops, *, limit: int) -> Tops:
    starts = np.empty_like(one.starts)
    bits = np.empty(len(one.rows) + len(other.rows), dtype=np.uint16)
    rows = np.empty(len(bits), dtype=np.int64)
    merge_sorted(*_arrays(one), *_arrays(other), limit, starts, bits, rows)
    count = int(starts[-1])
    return Tops(starts=starts, rows=rows[:count].copy(), values=bits[:count].copy().view(np.float16))


def _cut(tops: Tops, limit: int) -> Tops:
    """The strongest of each neuron alone."""
    counts = np.diff(tops.starts)
    kept = np.arange(len(tops.rows)) - np.repeat(tops.starts[:-1], counts) < limit
    return Tops(
        starts=_starts(np.minimum(counts, limit)),
        rows=tops.rows[kept].astype(np.int64),
        values=np.ascontiguousarray(tops.values)[kept],
    )


def _arrays(tops: Tops) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.ascontiguousarray(tops.starts), _bits(tops.values), tops.rows.astype(np.int64, copy=False)


def _bits(values: Float16[np.ndarray, " entries"]) -> UInt16[np.ndarray, " entries"]:
    return np.ascontiguousarray(values).view(np.uint16)


def _starts(counts: Int64[np.ndarray, " neurons"]) -> Int64[np.ndarray, " neurons_and_one"]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def write_tops(folder: Path, tops: Tops) -> None:
    """Write the tops of a shard, whose rows are below 65,536, under `folder`/tops."""
    target = folder / _FOLDER
    target.mkdir()
    save_array(target / "starts.npy", tops.starts)
    save_array(target / "rows.npy", tops.rows.astype(np.uint16))
    save_array(target / "values.npy", tops.values)


def read_tops(folder: Path) -> Tops:
    """Map `folder`/tops.

    Raises:
        ArtefactDamaged: the arrays do not fit together.
    """
    source = folder / _FOLDER
    starts = map_array(source / "starts.npy", np.int64, 1)
    rows, values = map_array(source / "rows.npy", np.uint16, 1), map_array(source / "values.npy", np.float16, 1)
    if not int(starts[-1]) == len(rows) == len(values):
        raise ArtefactDamaged(
            f"{source}: starts.npy names {int(starts[-1])} images; rows.npy has {len(rows)}, values.npy {len(values)}: "
            "build the index again"
        )
    return Tops(starts=starts, rows=rows, values=values)
