"""The codes of a shard on disk, row by row (compressed sparse rows); knows nothing of neurons' names or of images.

`codes/offsets.npy` says where each row's part of `neuron_ids.npy` and `values.npy` begins. Values are float16; a stored
value is within one float16 step of the live one, and every neuron that fires live fires here too. Neuron ids take two
bytes where all of them fit, counts of cut activations as few as the largest of the shard needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64, Integer

from index.arrays import map_array
from phosphene.codes import ImageCode
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged, NumericError

__all__ = ["CodesStore", "count_dtype", "id_dtype", "stored_order", "stored_values", "write_codes"]

_FOLDER = "codes"
_SMALLEST = np.float16(6e-8)
_LARGEST = np.finfo(np.float16).max
_CHUNK_ENTRIES = 1 << 20
_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)


def stored_values(values: Float32[np.ndarray, " active"]) -> Float16[np.ndarray, " active"]:
    """Round activations to float16 so that every active neuron stays active.

    Raises:
        NumericError: an activation is not finite, or beyond float16.
    """
    if len(values) and not bool(np.all(np.isfinite(values) & (values <= _LARGEST))):
        raise NumericError(
            f"an activation is {float(np.max(values)):g}; an index stores finite values up to {float(_LARGEST):g}: "
            "scale the sparse autoencoder's activations down (and its directions up)"
        )
    return np.maximum(values.astype(np.float16), _SMALLEST)


def stored_order(code: ImageCode) -> Int64[np.ndarray, " active"]:
    """Return the order in which a code is stored: rounding makes new ties, and ties go by neuron id.

    Raises:
        NumericError: an activation is not finite, or beyond float16.
    """
    order: Int64[np.ndarray, " active"] = np.lexsort((code.neuron_ids, -stored_values(code.values)))
    return order


def id_dtype(neuron_count: int) -> type[np.uint16 | np.int32]:
    """Return how the ids of so many neurons are stored."""
    return np.uint16 if neuron_count <= 1 << 16 else np.int32


def write_codes(folder: Path, codes: Sequence[ImageCode], *, neuron_count: int) -> None:
    """Write the codes of consecutive rows under `folder`/codes.

    Args:
        folder: a shard, being written.
        codes: one per row; an empty code for a row without one.
        neuron_count: neurons of the sparse autoencoder; every neuron id is smaller.

    Raises:
        NumericError: an activation does not fit float16.
    """
    target = folder / _FOLDER
    target.mkdir()
    offsets = np.zeros(len(codes) + 1, dtype=np.int64)
    np.cumsum([len(code) for code in codes], out=offsets[1:])
    neuron_ids = np.zeros(0, dtype=id_dtype(neuron_count))
    values = np.zeros(0, dtype=np.float16)
    if codes:
        neuron_ids = np.concatenate([code.neuron_ids for code in codes]).astype(id_dtype(neuron_count))
        values = stored_values(np.concatenate([code.values for code in codes]))
    for row in _rows_out_of_order(offsets, neuron_ids, values):
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        order = np.lexsort((neuron_ids[part], -values[part]))
        neuron_ids[part], values[part] = neuron_ids[part][order], values[part][order]
    save_array(target / "offsets.npy", offsets)
    save_array(target / "neuron_ids.npy", neuron_ids)
    save_array(target / "values.npy", values)
    cut_counts = np.array([code.cut_count for code in codes], dtype=np.int32)
    save_array(target / "cut_counts.npy", cut_counts.astype(count_dtype(cut_counts)))


def count_dtype(counts: Integer[np.ndarray, " rows"]) -> type[np.uint8 | np.uint16 | np.int32]:
    """Return how the numbers of cut activations of a shard are stored: as narrow as holds all of them."""
    largest = int(counts.max(initial=0))
    return np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32


def _rows_out_of_order(
    offsets: Int64[np.ndarray, " rows_and_one"],
    neuron_ids: Integer[np.ndarray, " entries"],
    values: Float16[np.ndarray, " entries"],
) -> Int64[np.ndarray, " rows"]:
    """Return the rows whose values do not fall with ties by neuron id: rounding makes new ties."""
    falls = values[:-1] > values[1:]
    keeps = (values[:-1] == values[1:]) & (neuron_ids[:-1] < neuron_ids[1:])
    is_last = np.zeros(len(values), dtype=bool)
    is_last[offsets[1:][np.diff(offsets) > 0] - 1] = True
    wrong = np.flatnonzero(~(falls | keeps | is_last[:-1]))
    return np.unique(np.searchsorted(offsets, wrong, side="right") - 1)


class CodesStore:
    """The codes of consecutive rows, memory-mapped."""

    offsets: Int64[np.ndarray, " rows_and_one"]
    """Where each row begins in `neuron_ids` and `values`; the last one is their length."""
    neuron_ids: Integer[np.ndarray, " entries"]
    """Neurons that fire, row after row; uint16 or int32."""
    values: Float16[np.ndarray, " entries"]
    """Their activations; within a row descending, ties by ascending neuron id."""
    cut_counts: Integer[np.ndarray, " rows"]
    """Activations that the code limits cut off each row."""

    def __init__(self, folder: Path) -> None:
        """Map the store under `folder`/codes.

        Raises:
            ArtefactDamaged: the arrays do not fit together.
        """
        source = folder / _FOLDER
        self.offsets = map_array(source / "offsets.npy", np.int64, 1)
        self.neuron_ids = map_array(source / "neuron_ids.npy", (np.uint16, np.int32), 1)
        self.values = map_array(source / "values.npy", np.float16, 1)
        self.cut_counts = map_array(source / "cut_counts.npy", (np.uint8, np.uint16, np.int32), 1)
        entry_count = int(self.offsets[-1])
        if not (entry_count == len(self.neuron_ids) == len(self.values) and self.row_count == len(self.cut_counts)):
            raise ArtefactDamaged(
                f"{source}: offsets.npy names {entry_count} entries in {self.row_count} rows; neuron_ids.npy has "
                f"{len(self.neuron_ids)}, values.npy {len(self.values)}, cut_counts.npy {len(self.cut_counts)}: "
                "build the index again"
            )

    @property
    def row_count(self) -> int:
        """Rows in the store."""
        return len(self.offsets) - 1

    @property
    def entry_count(self) -> int:
        """Activations in the store, over all rows."""
        return len(self.values)

    def code(self, row: int) -> ImageCode:
        """Return the code of a row (0 <= row < row_count), values widened to float32."""
        # Called row by row: `item`, and types made once, take a sixth off.
        begin, end = self.offsets.item(row), self.offsets.item(row + 1)
        return ImageCode(
            neuron_ids=self.neuron_ids[begin:end].astype(_INT32),
            values=self.values[begin:end].astype(_FLOAT32),
            cut_count=self.cut_counts.item(row),
        )

    def take(
        self, rows: Int64[np.ndarray, " rows"]
    ) -> tuple[
        Int64[np.ndarray, " rows_and_one"], Integer[np.ndarray, " taken_entries"], Float16[np.ndarray, " taken_entries"]
    ]:
        """Return the codes of some rows in the form of the store: offsets from 0, neuron ids and values."""
        begins = self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.offsets[rows + 1] - begins, out=offsets[1:])
        entries = np.arange(int(offsets[-1])) + np.repeat(begins - offsets[:-1], np.diff(offsets))
        return offsets, self.neuron_ids[entries], self.values[entries]

    def values_of(self, neuron_id: int, rows: Int64[np.ndarray, " rows"]) -> Float16[np.ndarray, " rows"]:
        """Return a neuron's activations on rows on each of which it fires."""
        _, neuron_ids, values = self.take(rows)
        found: Float16[np.ndarray, " rows"] = values[neuron_ids == neuron_id]
        return found

    def row_blocks(self, entry_limit: int = _CHUNK_ENTRIES) -> Iterator[tuple[int, int]]:
        """Yield (first row, row after the last) of blocks that hold at most `entry_limit` entries, or one row."""
        start = 0
        while start < self.row_count:
            bound = int(self.offsets[start]) + entry_limit
            stop = int(np.searchsorted(self.offsets, bound, side="right")) - 1
            stop = min(max(stop, start + 1), self.row_count)
            yield start, stop
            start = stop
