"""scipy: the product of the query, a sparse row, with the images by neuron; then the largest of what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks.index_load.contestant import DEPTH, Task, compete, unit_rows
from benchmarks.index_load.synthetic import SparseRows


class Scipy:
    """The images as compressed sparse columns, which for scipy is their transpose in rows: no product converts them."""

    def __init__(self, task: Task, images: SparseRows, is_dense: np.ndarray) -> None:
        rows = unit_rows(images, is_dense)
        shape = (rows.row_count, len(is_dense))
        matrix = csr_matrix((rows.values, rows.neuron_ids, rows.offsets.astype(np.int32)), shape=shape)
        self._by_neuron = matrix.T.tocsr()
        self.notes: dict[str, float] = {}
        self.stored_bytes = sum(
            part.nbytes for part in (self._by_neuron.data, self._by_neuron.indices, self._by_neuron.indptr)
        )

    def prepare(self, settings: dict[str, Any], queries: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        shape = (1, self._by_neuron.shape[0])
        return [csr_matrix((values, ids, np.array([0, len(ids)])), shape=shape) for ids, values in queries]

    def ask(self, query: Any) -> Any:
        scores = query @ self._by_neuron
        if len(scores.data) > DEPTH:
            best = np.argpartition(scores.data, -DEPTH)[-DEPTH:]
        else:
            best = np.arange(len(scores.data))
        best = best[np.argsort(-scores.data[best])]
        return scores.indices[best]

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for row in answer]


if __name__ == "__main__":
    compete(Scipy)
