"""Exact similar images: what brute force over the stored codes would answer; knows nothing of files or FAISS.

The score of a row is computed in float64 from the query and the stored float16 activations, summed in the order in
which the row stores them: equal codes have equal scores. Codes that share no neuron that counts are not similar at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int32, Int64, Integer, UInt32

from index.retrieval.posting_kernels import root_sums
from index.retrieval.postings import ROW_LIMIT, ShardPostings
from index.retrieval.scoring_kernels import COLUMNS, best_of_rows
from index.retrieval.search_kernels import search_shards
from index.values import CodeMetric
from phosphene.errors import NotFound, NumericError

__all__ = ["ExactSearch", "SearchShard", "check_query"]

# A query's neuron takes at least 1 of the 65,536 units of weight.
_ACTIVE_LIMIT = 1 << 15
_NO_NEURONS = np.empty(0, dtype=np.int32)
_NO_ROWS = np.empty(0, dtype=np.int64)
_NONE_LEFT_OUT = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchShard:
    """One shard to search; the arrays may be memory-mapped."""

    start: int
    """Its first row in the index."""
    postings: ShardPostings
    """Its codes by neuron."""
    offsets: Int64[np.ndarray, " rows_and_one"]
    """Where each row's code begins."""
    neuron_ids: Integer[np.ndarray, " entries"]
    """Neurons that fire, row after row."""
    values: Float16[np.ndarray, " entries"]
    """Their activations."""
    norms: Float32[np.ndarray, " rows"]
    """Euclidean norm of each row's code."""


Found = tuple[Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]
_Part = tuple[Int64[np.ndarray, " _"], Float64[np.ndarray, " _"]]


def check_query(
    neuron_ids: Integer[np.ndarray, " active"], values: Float32[np.ndarray, " active"], *, neuron_count: int
) -> None:
    """Refuse a code that nothing can be compared with.

    Raises:
        NotFound: it names a neuron that there is not.
        NumericError: an activation is NaN or infinite.
    """
    if len(neuron_ids) and not 0 <= int(neuron_ids.min()) <= int(neuron_ids.max()) < neuron_count:
        raise NotFound(
            f"the code has neurons {int(neuron_ids.min())} to {int(neuron_ids.max())}; those of the index are 0 to "
            f"{neuron_count - 1}: ask with a code of the bundle that the index was built for"
        )
    if not bool(np.isfinite(values).all()):
        raise NumericError("an activation of the code is NaN or infinite, which is similar to nothing")


class ExactSearch:
    """Finds the rows with the most similar codes; several threads may ask at a time."""

    def __init__(self, shards: Sequence[SearchShard], *, neuron_count: int, thread_count: int = 1) -> None:
        """Search `shards`, whose arrays stay referenced.

        Args:
            shards: of one index, in any order; their neuron ids are of one integer type.
            neuron_count: neurons of the sparse autoencoder.
            thread_count: threads of one search; no answer depends on it.
        """
        self._shards = sorted((_packed(shard) for shard in shards), key=lambda shard: (shard.start, len(shard.norms)))
        self._neuron_count, self._thread_count = neuron_count, max(1, min(thread_count, len(shards)))
        self._row_count = sum(len(shard.norms) for shard in self._shards)
        self._id_sample = np.empty(0, dtype=self._shards[0].neuron_ids.dtype if shards else np.int32)
        self._posting_counts = np.zeros(neuron_count, dtype=np.int64)
        for shard in self._shards:
            self._posting_counts += np.diff(shard.postings.neuron_starts)
        own = [shard.norms for shard in self._shards]
        self._whole = _Norms(self._shards, own, _NONE_LEFT_OUT, self._thread_count)
        self._restricted = self._whole
        self._workspaces: deque[_Workspace] = deque()

    def nearest(
        self,
        neuron_ids: Integer[np.ndarray, " active"],
        values: Float32[np.ndarray, " active"],
        count: int,
        *,
        metric: CodeMetric = CodeMetric.COSINE,
        left_out: Bool[np.ndarray, " neurons"] | None = None,
        only: Integer[np.ndarray, " chosen"] | None = None,
        excluded_rows: Int64[np.ndarray, " excluded"] | None = None,
    ) -> Found:
        """Return rows of the index and their scores, best first, ties by row; rows that share no neuron never.

        Args:
            neuron_ids: of the query's code, none twice.
            values: its activations, above 0.
            count: at most so many rows; at least 1.
            metric: what the score is.
            left_out: neurons that do not count, neither in products nor in norms: the dense ones. The first search with
                others than before reads all codes once, for their norms.
            only: neurons whose products count. Norms stay those of the whole codes (but for `left_out`), so that a
                score is the part of the similarity that these neurons make up. None: all.
            excluded_rows: rows of the index that are not to be found, rising.

        Raises:
            NotFound: the query names a neuron that there is not.
            NumericError: an activation of the query is NaN or infinite.
            ValueError: the query has more neurons than weights can be told apart for.
        """
        if len(neuron_ids) > _ACTIVE_LIMIT:
            raise ValueError(f"a query of {len(neuron_ids)} neurons; the limit is {_ACTIVE_LIMIT}: cut its code")
        norms = self._norms(left_out)
        count = max(1, min(count, self._row_count))
        excluded = _NO_ROWS if excluded_rows is None else np.require(excluded_rows, np.int64, ("C", "W"))
        chosen = _chosen(only)
        query_ids, query_values = self._query(neuron_ids, values)

        def search(first: int) -> _Part:
            scores, rows = np.empty(count), np.empty(count, dtype=np.int64)
            space = self._workspace()
            found = search_shards(
                *norms.parts[first],
                self._posting_counts,
                self._id_sample,
                query_ids,
                query_values,
                metric is CodeMetric.COSINE,
                norms.left_out,
                only is not None,
                chosen,
                excluded,
                space.accumulator,
                space.marks,
                space.candidates,
                space.sums,
                space.query,
                scores,
                rows,
            )
            self._workspaces.append(space)
            if found < 0:
                self._refuse(query_ids, query_values)
            return rows[:found], scores[:found]

        if self._thread_count == 1:
            return search(0)
        with ThreadPoolExecutor(self._thread_count) as pool:
            return _merged(list(pool.map(search, range(self._thread_count))), count)

    def ranked(
        self,
        neuron_ids: Integer[np.ndarray, " active"],
        values: Float32[np.ndarray, " active"],
        rows: Int64[np.ndarray, " candidates"],
        count: int,
        *,
        metric: CodeMetric = CodeMetric.COSINE,
        left_out: Bool[np.ndarray, " neurons"] | None = None,
        only: Integer[np.ndarray, " chosen"] | None = None,
        excluded_rows: Int64[np.ndarray, " excluded"] | None = None,
    ) -> Found:
        """Return the best of given rows as `nearest` would score them: what an approximate search ends with.

        Args:
            neuron_ids: of the query's code, none twice.
            values: its activations, above 0.
            rows: rows of the index; negative ones stand for none.
            count: at most so many rows.
            metric: see `nearest`.
            left_out: see `nearest`.
            only: see `nearest`.
            excluded_rows: see `nearest`.

        Raises:
            NotFound: see `nearest`.
            NumericError: see `nearest`.
        """
        query_ids, query_values = self._query(neuron_ids, values)
        count = max(1, min(count, self._row_count))
        scores, best = np.empty(count), np.empty(count, dtype=np.int64)
        space = self._workspace()
        found = best_of_rows(
            self._whole.table,
            self._id_sample,
            np.array(rows, dtype=np.int64),
            query_ids,
            query_values,
            metric is CodeMetric.COSINE,
            _NONE_LEFT_OUT if left_out is None else np.require(left_out, np.bool_, ("C", "W")),
            only is not None,
            _chosen(only),
            _NO_ROWS if excluded_rows is None else np.require(excluded_rows, np.int64, ("C", "W")),
            space.query,
            scores,
            best,
        )
        self._workspaces.append(space)
        if found < 0:
            self._refuse(query_ids, query_values)
        return best[:found], scores[:found]

    def _query(
        self, neuron_ids: Integer[np.ndarray, " active"], values: Float32[np.ndarray, " active"]
    ) -> tuple[Int32[np.ndarray, " active"], Float32[np.ndarray, " active"]]:
        """Copies of one kind, for which kernels are compiled once; they check what fits into it."""
        if neuron_ids.dtype != np.int32:
            check_query(neuron_ids, values, neuron_count=self._neuron_count)
        return np.array(neuron_ids, dtype=np.int32), np.array(values, dtype=np.float32)

    def _refuse(self, neuron_ids: Int32[np.ndarray, " active"], values: Float32[np.ndarray, " active"]) -> NoReturn:
        check_query(neuron_ids, values, neuron_count=self._neuron_count)
        raise AssertionError("the kernel refused a query that can be compared")

    def _norms(self, left_out: Bool[np.ndarray, " neurons"] | None) -> _Norms:
        if left_out is None:
            return self._whole
        known = self._restricted
        if left_out.tobytes() != known.key:
            restricted = [_norms_without(shard, left_out) for shard in self._shards]
            known = _Norms(self._shards, restricted, left_out, self._thread_count)
            self._restricted = known
        return known

    def _workspace(self) -> _Workspace:
        """One that nobody else has; whoever takes it gives it back clean, or, after an error, not at all."""
        try:
            return self._workspaces.pop()
        except IndexError:
            return _Workspace(self._neuron_count)


class _Workspace:
    """What one thread of a search writes to; ready for the next search after each."""

    def __init__(self, neuron_count: int) -> None:
        self.accumulator: UInt32[np.ndarray, " rows"] = np.zeros(ROW_LIMIT, dtype=np.uint32)
        self.marks: UInt32[np.ndarray, " 1"] = np.zeros(1, dtype=np.uint32)
        self.candidates: UInt32[np.ndarray, " rows"] = np.empty(ROW_LIMIT, dtype=np.uint32)
        self.sums: UInt32[np.ndarray, " rows"] = np.empty(ROW_LIMIT, dtype=np.uint32)
        self.query: Float64[np.ndarray, " neurons"] = np.zeros(neuron_count)


class _Norms:
    """Row norms over the neurons that count, and where everything lies."""

    def __init__(
        self,
        shards: Sequence[SearchShard],
        norms: Sequence[Float32[np.ndarray, " _"]],
        left_out: Bool[np.ndarray, " neurons"],
        thread_count: int,
    ) -> None:
        self._kept_alive = list(norms)
        self.left_out, self.key = left_out.copy(), left_out.tobytes()
        lines = [_addresses(shard, own) for shard, own in zip(shards, norms, strict=True)]
        self.table: Int64[np.ndarray, "shards columns"] = np.array(lines, dtype=np.int64).reshape(-1, len(COLUMNS))
        scales = np.array([shard.postings.scale for shard in shards], dtype=np.float64)
        ranges = np.array(
            [(own[own > 0].min(initial=np.inf), own.max(initial=0.0)) for own in norms], dtype=np.float32
        ).reshape(-1, 2)
        # Each thread has its shards: table, scales and ranges of norms.
        self.parts = [
            tuple(np.ascontiguousarray(whole[first::thread_count]) for whole in (self.table, scales, ranges))
            for first in range(thread_count)
        ]


def _packed(shard: SearchShard) -> SearchShard:
    """The same shard with arrays that can be told by an address."""
    return SearchShard(
        start=shard.start,
        postings=ShardPostings(
            neuron_starts=np.ascontiguousarray(shard.postings.neuron_starts),
            words=np.ascontiguousarray(shard.postings.words),
            scale=shard.postings.scale,
            row_count=shard.postings.row_count,
        ),
        offsets=np.ascontiguousarray(shard.offsets),
        neuron_ids=np.ascontiguousarray(shard.neuron_ids),
        values=np.ascontiguousarray(shard.values),
        norms=np.ascontiguousarray(shard.norms),
    )


def _addresses(shard: SearchShard, norms: Float32[np.ndarray, " rows"]) -> list[int]:
    arrays = (shard.postings.neuron_starts, shard.postings.words, shard.offsets, shard.neuron_ids, shard.values, norms)
    return [shard.start, len(shard.norms), *(array.ctypes.data for array in arrays)]


def _chosen(only: Integer[np.ndarray, " chosen"] | None) -> Int32[np.ndarray, " rising"]:
    return _NO_NEURONS if only is None else np.unique(only).astype(np.int32)


def _norms_without(shard: SearchShard, left_out: Bool[np.ndarray, " neurons"]) -> Float32[np.ndarray, " rows"]:
    norms = np.empty(len(shard.norms), dtype=np.float32)
    root_sums(shard.offsets, shard.neuron_ids, shard.values.view(np.uint16), left_out, norms)
    return norms


def _merged(parts: Sequence[_Part], count: int) -> Found:
    rows, scores = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    order = np.lexsort((rows, -scores))[:count]
    return rows[order], scores[order]
