"""Phosphene's exact search, over codes as an index stores them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.index_load.contestant import DEPTH, Task, compete
from benchmarks.index_load.synthetic import SparseRows
from index.retrieval.exact import ExactSearch, SearchShard
from index.retrieval.postings import build_postings, row_norms

__all__ = ["SHARD_ROWS", "Ours", "exact_search", "shards_of"]

SHARD_ROWS = 65_536
"""Images in a shard."""
# No code of these is cut.
_CUT_COUNT_BYTES = 1
# Neuron, value and posting.
_ENTRY_BYTES = 8


class Ours:
    """Shards of the default size, in memory."""

    def __init__(self, task: Task, images: SparseRows, is_dense: np.ndarray) -> None:
        self._is_dense = is_dense
        # Kernels are compiled, or loaded, by nobody's time.
        shards_of(images.part(0, 1), len(is_dense))
        before_s = time.process_time()
        shards = shards_of(images, len(is_dense))
        self.notes = {"postings_cpu_s": time.process_time() - before_s}
        self.stored_bytes = sum(_bytes(shard) for shard in shards)
        kept_count = int(np.count_nonzero(~is_dense[images.neuron_ids]))
        self.notes["bytes_without_dense"] = self.stored_bytes - _ENTRY_BYTES * (len(images.neuron_ids) - kept_count)
        self._search = exact_search(shards, is_dense)

    def prepare(self, settings: dict[str, Any], queries: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        return queries

    def ask(self, query: Any) -> Any:
        return self._search.nearest(*query, DEPTH, left_out=self._is_dense)

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for row in answer[0]]


def shards_of(images: SparseRows, neuron_count: int) -> list[SearchShard]:
    """The images as an index cuts and turns them."""
    starts = range(0, images.row_count, SHARD_ROWS)
    return [
        _shard(images.part(start, min(start + SHARD_ROWS, images.row_count)), start, neuron_count) for start in starts
    ]


def exact_search(shards: list[SearchShard], is_dense: np.ndarray) -> ExactSearch:
    """The search, ready to be asked."""
    search = ExactSearch(shards, neuron_count=len(is_dense))
    search.nearest(np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.float32), 1, left_out=is_dense)
    return search


def _shard(part: SparseRows, start: int, neuron_count: int) -> SearchShard:
    neuron_ids = part.neuron_ids.astype(np.uint16)
    return SearchShard(
        start=start,
        postings=build_postings(part.offsets, neuron_ids, part.values, neuron_count=neuron_count),
        offsets=part.offsets,
        neuron_ids=neuron_ids,
        values=np.array(part.values),
        norms=row_norms(part.offsets, part.values),
    )


def _bytes(shard: SearchShard) -> int:
    """Of the files: codes with their counts of cut activations, postings, norms."""
    postings = shard.postings
    arrays = (shard.offsets, shard.neuron_ids, shard.values, postings.neuron_starts, postings.words, shard.norms)
    return sum(array.nbytes for array in arrays) + _CUT_COUNT_BYTES * len(shard.norms)


if __name__ == "__main__":
    compete(Ours)
