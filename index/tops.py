"""The strongest images of every neuron, found shard by shard and merged.

The merge is exact, and neither its order nor a repeat changes it: the strongest of all are among the strongest of each
part, ties go by lower row, and an image counts once however often it is handed in. `write_tops` keeps a shard's own
under `tops/`. Knows nothing of images' bytes: the same bytes in two rows are two images here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int32, Int64, Integer

from index.arrays import map_array
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
    row_bits = max(1, (len(offsets) - 1).bit_length())
    # One unsigned sort puts them by neuron, then strongest first, then by row: positive float16 bits are in order.
    keys = neuron_ids.astype(np.uint64) << np.uint64(15) | (0x7FFF - _bits(values)).astype(np.uint64)
    keys <<= np.uint64(row_bits)
    keys |= np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
    keys.sort()
    owners = (keys >> np.uint64(15 + row_bits)).astype(np.int64)
    kept = _first_of_each(owners, neuron_count, limit)
    keys, owners = keys[kept], owners[kept]
    inverted = ((keys >> np.uint64(row_bits)) & np.uint64(0x7FFF)).astype(np.uint16)
    return Tops(
        starts=_starts(owners, neuron_count),
        rows=(keys & np.uint64((1 << row_bits) - 1)).astype(np.int64),
        values=(0x7FFF - inverted).astype(np.uint16).view(np.float16),
    )


def merge_tops(parts: Sequence[Tops], *, limit: int = TOP_LIMIT) -> Tops:
    """Merge the tops of parts whose rows are counted from one place (at least one part, equal numbers of neurons)."""
    neuron_count = len(parts[0].starts) - 1
    owners = np.concatenate([np.repeat(np.arange(neuron_count), np.diff(part.starts)) for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    values = np.concatenate([part.values for part in parts])
    order = np.lexsort((rows, -_bits(values), owners))
    owners, rows, values = owners[order], rows[order], values[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (owners[1:] != owners[:-1]) | (rows[1:] != rows[:-1])
    owners, rows, values = owners[fresh], rows[fresh], values[fresh]
    kept = _first_of_each(owners, neuron_count, limit)
    return Tops(starts=_starts(owners[kept], neuron_count), rows=rows[kept], values=values[kept])


def _bits(values: Float16[np.ndarray, " entries"]) -> Int32[np.ndarray, " entries"]:
    return np.ascontiguousarray(values).view(np.uint16).astype(np.int32)


def _starts(owners: Int64[np.ndarray, " entries"], neuron_count: int) -> Int64[np.ndarray, " neurons_and_one"]:
    starts = np.zeros(neuron_count + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=neuron_count), out=starts[1:])
    return starts


def _first_of_each(
    owners: Int64[np.ndarray, " entries"], neuron_count: int, limit: int
) -> Bool[np.ndarray, " entries"]:
    starts = _starts(owners, neuron_count)
    kept: Bool[np.ndarray, " entries"] = np.arange(len(owners)) - starts[owners] < limit
    return kept


def write_tops(folder: Path, tops: Tops) -> None:
    """Write the tops of a shard, whose rows are below 65,536, under `folder`/tops."""
    target = folder / _FOLDER
    target.mkdir()
    np.save(target / "starts.npy", tops.starts)
    np.save(target / "rows.npy", tops.rows.astype(np.uint16))
    np.save(target / "values.npy", tops.values)


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
