"""Qdrant's engine in process (qdrant-edge-py): exact search over an indexed sparse vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant

from benchmarks.index_load.contestant import DEPTH, Task, compete, unit_rows
from benchmarks.index_load.synthetic import SparseRows

_NAME = "code"
_BATCH = 5_000


class Qdrant:
    """One shard with an inverted index in memory, over cosines."""

    def __init__(self, task: Task, images: SparseRows, is_dense: np.ndarray) -> None:
        rows = unit_rows(images, is_dense)
        folder = Path(task.scratch)
        vector = qdrant.EdgeSparseVectorParams(on_disk=False)
        optimizers = qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1)
        config = qdrant.EdgeConfig(sparse_vectors={_NAME: vector}, optimizers=optimizers, max_search_threads=1)
        self._shard = qdrant.EdgeShard.create(str(folder), config)
        for start in range(0, rows.row_count, _BATCH):
            self._shard.update(qdrant.UpdateOperation.upsert_points(_points(rows, start)))
        self._shard.optimize()
        self._shard.flush()
        self.notes: dict[str, float] = {}
        self.stored_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def prepare(self, settings: dict[str, Any], queries: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        return [self._request(ids, values) for ids, values in queries]

    def ask(self, query: Any) -> Any:
        return self._shard.query(query)

    def rows(self, answer: Any) -> list[int]:
        return [int(point.id) for point in answer]

    def _request(self, ids: np.ndarray, values: np.ndarray) -> Any:
        by_id = np.argsort(ids)
        vector = qdrant.SparseVector(ids[by_id].tolist(), values[by_id].tolist())
        return qdrant.QueryRequest(
            limit=DEPTH,
            query=qdrant.Query.Nearest(vector, using=_NAME),
            params=qdrant.SearchParams(exact=True),
        )


def _points(rows: SparseRows, start: int) -> list[Any]:
    points = []
    for row in range(start, min(start + _BATCH, rows.row_count)):
        part = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
        vector = qdrant.SparseVector(rows.neuron_ids[part].tolist(), rows.values[part].tolist())
        points.append(qdrant.Point(row, {_NAME: vector}, {}))
    return points


if __name__ == "__main__":
    compete(Qdrant)
