"""Phosphene's approximate search, built and measured as an index does it: sketches, FAISS, exact ranking."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.index_load.contestant import DEPTH, Task, compete
from benchmarks.index_load.ours import SHARD_ROWS, exact_search, shards_of
from benchmarks.index_load.synthetic import SparseRows
from index.plan import Quantiser
from index.similar import measure_search
from index.sketch import SKETCH_FILE, SKETCH_WIDTH, kept_signs, sketches
from index.sketch_search import SketchSearch
from index.vector_index import plan_layout, write_vectors
from phosphene.codes import ImageCode

_SEED = 0
_IVF_FROM_IMAGES = 1


class Rows:
    """The sketches of codes in memory."""

    width = SKETCH_WIDTH

    def __init__(self, images: SparseRows, is_dense: np.ndarray) -> None:
        self.row_count = images.row_count
        self._images, self._signs = images, kept_signs(is_dense, _SEED)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Of some rows, rising."""
        parts = [self._images.part(int(row), int(row) + 1) for row in rows]
        offsets = np.cumsum([0, *(len(part.values) for part in parts)])
        ids, values = (np.concatenate([getattr(part, name) for part in parts]) for name in ("neuron_ids", "values"))
        return sketches(offsets, ids, values, self._signs)

    def shards(self) -> Iterator[Iterable[tuple[int, np.ndarray]]]:
        """Of all rows, shard by shard."""
        for start in range(0, self.row_count, SHARD_ROWS):
            part = self._images.part(start, min(start + SHARD_ROWS, self.row_count))
            yield [(start, sketches(part.offsets, part.neuron_ids, part.values, self._signs))]


class OurSketch:
    """The FAISS tier with its defaults, in inverted lists also where an index would have none yet."""

    def __init__(self, task: Task, images: SparseRows, is_dense: np.ndarray) -> None:
        faiss.omp_set_num_threads(1)
        before_s = time.process_time()
        layout = plan_layout(images.row_count, ivf_from_images=_IVF_FROM_IMAGES, quantiser=Quantiser.FAST_SCAN)
        write_vectors(Path(task.scratch) / SKETCH_FILE, Rows(images, is_dense), layout)
        self.stored_bytes = (Path(task.scratch) / SKETCH_FILE).stat().st_size
        self.notes = {"sketch_cpu_s": time.process_time() - before_s}
        exact = exact_search(shards_of(images, len(is_dense)), is_dense)
        self._search = SketchSearch(Path(task.scratch), exact, left_out=is_dense, seed=_SEED)

        def code_of(row: int) -> ImageCode:
            part = images.part(row, row + 1)
            return ImageCode(neuron_ids=np.array(part.neuron_ids), values=part.values.astype(np.float32))

        firing = np.flatnonzero(np.diff(images.offsets))
        found = measure_search(self._search, exact, code_of, firing, left_out=is_dense)
        self._effort = found.effort
        self.notes |= {
            "probe_count": found.probe_count,
            "candidate_count": found.candidate_count,
            "stated_recall": found.recall,
        }

    def prepare(self, settings: dict[str, Any], queries: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        return queries

    def ask(self, query: Any) -> Any:
        return self._search.nearest(*query, DEPTH, effort=self._effort, excluded_rows=np.zeros(0, dtype=np.int64))

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for row in answer[0]]


if __name__ == "__main__":
    compete(OurSketch)
