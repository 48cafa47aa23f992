"""Seismic (Bruch and others, 2024): approximate search over clustered posting lists, through its raw index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from seismic import SeismicIndexRaw

from benchmarks.index_load.contestant import DEPTH, Task, compete, unit_rows
from benchmarks.index_load.synthetic import SparseRows


class Seismic:
    """The raw index, which takes numbers for neurons, over cosines."""

    def __init__(self, task: Task, images: SparseRows, is_dense: np.ndarray) -> None:
        file = Path(task.scratch) / "images.bin"
        _write(unit_rows(images, is_dense), file)
        self._index = SeismicIndexRaw.build(str(file))
        saved = Path(task.scratch) / "index"
        self._index.save(str(saved))
        self.notes: dict[str, float] = {}
        self.stored_bytes = sum(path.stat().st_size for path in saved.parent.glob("index*"))

    def prepare(self, settings: dict[str, Any], queries: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        cut, factor = int(settings["query_cut"]), float(settings["heap_factor"])
        units = [(ids, values / np.linalg.norm(values), np.argsort(ids)) for ids, values in queries]
        return [(ids[by].astype(np.int32), values[by].astype(np.float32), cut, factor) for ids, values, by in units]

    def ask(self, query: Any) -> Any:
        ids, values, cut, factor = query
        return self._index.search(ids, values, DEPTH, cut, factor, 0, True)

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for _, row in answer]


def _write(rows: SparseRows, file: Path) -> None:
    """Its own format: the number of rows; for each its length, its neurons and its values; 32 bits each."""
    words = np.empty(1 + rows.row_count + 2 * len(rows.values), dtype=np.uint32)
    words[0] = rows.row_count
    lengths = np.diff(rows.offsets)
    heads = 1 + np.arange(rows.row_count) + 2 * rows.offsets[:-1]
    words[heads] = lengths
    owners = np.repeat(np.arange(rows.row_count), lengths)
    inside = np.arange(len(rows.values)) - rows.offsets[:-1][owners]
    words[heads[owners] + 1 + inside] = rows.neuron_ids
    words[heads[owners] + 1 + lengths[owners] + inside] = rows.values.view(np.uint32)
    words.tofile(file)


if __name__ == "__main__":
    compete(Seismic)
