"""Images with similar codes: exactly by default, from sketches where the corpus is very large or it was asked for.

Neurons that fire on a large share of the images are left out of the comparison: nearly every code has them, and they
say little. Which ones is fixed when the index is built. Sketches estimate cosines over all other neurons: inner
products, and similarities over chosen neurons, are always found exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from index.effort import Approximation, Effort, efforts, measured, sample_rows
from index.retrieval.exact import ExactSearch, SearchShard
from index.row_sets import among
from index.shards import Shards
from index.sketch_search import SketchSearch
from index.values import CodeMetric, SimilarImage
from phosphene.codes import ImageCode

__all__ = ["SimilarImages", "measure_search", "measure_sketch", "search_shards"]

_DEPTH = 10


def search_shards(shards: Shards) -> list[SearchShard]:
    """Return the shards as searches take them."""
    return [
        SearchShard(
            start=shard.rows.start,
            postings=shard.postings,
            offsets=shard.codes.offsets,
            neuron_ids=shard.codes.neuron_ids,
            values=shard.codes.values,
            norms=shard.norms,
        )
        for shard in shards
    ]


class SimilarImages:
    """Nearest rows by the similarity of codes."""

    def __init__(
        self,
        folder: Path,
        shards: Shards,
        *,
        left_out_neuron_ids: Sequence[int],
        sketch_seed: int,
        approximation: Approximation | None,
        device: str = "cpu",
    ) -> None:
        """Make the search ready.

        Args:
            folder: the index.
            shards: its shards.
            left_out_neuron_ids: neurons that do not count.
            sketch_seed: seed of the sign vectors of `sketch.faiss`.
            approximation: how far the sketches are looked through, and what that finds; None searches exactly.
            device: where FAISS searches.

        Raises:
            SettingError: the device cannot hold the sketches.
        """
        self._shards, self._approximation = shards, approximation
        self._left_out = _left_out(shards, left_out_neuron_ids)
        self._exact = ExactSearch(search_shards(shards), neuron_count=shards.neuron_count)
        self._sketch = (
            None
            if approximation is None
            else SketchSearch(folder, self._exact, left_out=self._left_out, seed=sketch_seed, device=device)
        )

    def nearest(
        self,
        code: ImageCode,
        count: int,
        *,
        exclude_rows: Collection[int] = (),
        hidden_rows: Int64[np.ndarray, " hidden"] | None = None,
        metric: CodeMetric = CodeMetric.COSINE,
        neuron_ids: Sequence[int] | None = None,
    ) -> list[SimilarImage]:
        """Return up to `count` rows, the most similar first, ties by row; rows that share no neuron never.

        Args:
            code: of any image, live or stored.
            count: at least 1.
            exclude_rows: rows to leave out: those of the query's own image.
            hidden_rows: more rows to leave out, rising.
            metric: what the similarity is.
            neuron_ids: neurons whose products alone count; norms stay those of the whole codes. None: all.
        """
        if not len(code):
            return []
        excluded = np.zeros(0, dtype=np.int64) if hidden_rows is None else hidden_rows
        if exclude_rows:
            own = np.array(sorted(exclude_rows), dtype=np.int64)
            own = own[~among(own, excluded)]
            excluded = np.insert(excluded, np.searchsorted(excluded, own), own)
        recall = 1.0
        is_estimated = metric is CodeMetric.COSINE and neuron_ids is None
        if self._sketch is None or self._approximation is None or not is_estimated:
            rows, scores = self._exact.nearest(
                code.neuron_ids,
                code.values,
                count,
                metric=metric,
                left_out=self._left_out,
                only=None if neuron_ids is None else np.array(neuron_ids, dtype=np.int32),
                excluded_rows=excluded,
            )
        else:
            recall = self._approximation.recall
            rows, scores = self._sketch.nearest(
                code.neuron_ids, code.values, count, effort=self._approximation.effort, excluded_rows=excluded
            )
        limit = 1.0 if metric is CodeMetric.COSINE else np.inf
        return [
            SimilarImage(
                row=int(row),
                similarity=min(float(score), limit),
                shared_neuron_ids=self._shared(code, int(row), neuron_ids),
                recall=recall,
            )
            for row, score in zip(rows, scores, strict=True)
        ]

    def warm(self) -> None:
        """Ask once in every way, so that no question waits for loops to be compiled or for norms to be read."""
        code = ImageCode(neuron_ids=np.zeros(1, dtype=np.int32), values=np.ones(1, dtype=np.float32))
        for metric in CodeMetric:
            self.nearest(code, 1, metric=metric)

    def _shared(self, code: ImageCode, row: int, neuron_ids: Sequence[int] | None) -> tuple[int, ...]:
        other = self._shards.code(row)
        shared, in_code, in_other = np.intersect1d(
            code.neuron_ids, other.neuron_ids, assume_unique=True, return_indices=True
        )
        order = np.lexsort((shared, -code.values[in_code] * other.values[in_other]))
        counted = ~self._left_out[shared]
        if neuron_ids is not None:
            counted &= np.isin(shared, neuron_ids)
        return tuple(int(shared[place]) for place in order if counted[place])


def measure_sketch(folder: Path, shards: Shards, *, left_out: Bool[np.ndarray, " neurons"], seed: int) -> Approximation:
    """Choose how far `sketch.faiss` is to be looked through, and measure what that finds, on codes of the index.

    Args:
        folder: the index being written.
        shards: its shards.
        left_out: neurons that do not count.
        seed: of the sign vectors.
    """
    exact = ExactSearch(search_shards(shards), neuron_count=shards.neuron_count)
    sketch = SketchSearch(folder, exact, left_out=left_out, seed=seed)
    firing = np.concatenate([np.flatnonzero(np.diff(shard.codes.offsets)) + shard.rows.start for shard in shards])
    return measure_search(sketch, exact, shards.code, firing, left_out=left_out)


def measure_search(
    sketch: SketchSearch,
    exact: ExactSearch,
    code_of: Callable[[int], ImageCode],
    firing: Int64[np.ndarray, " firing"],
    *,
    left_out: Bool[np.ndarray, " neurons"],
) -> Approximation:
    """Measure a search for similar images against the exact one; see `index.effort.measured`.

    Ties count as found: a row as near as the last of the exact ones is as good.

    Args:
        sketch: what is measured.
        exact: what should be found.
        code_of: gives the stored code of a row.
        firing: rows whose codes are not empty.
        left_out: neurons that do not count.
    """
    due: dict[int, Float64[np.ndarray, " found"]] = {}

    def hits(effort: Effort, row: int) -> tuple[int, int]:
        code, own = code_of(row), np.array([row], dtype=np.int64)
        if row not in due:
            _, due[row] = exact.nearest(code.neuron_ids, code.values, _DEPTH, left_out=left_out, excluded_rows=own)
        count = len(due[row])
        if not count:
            return 0, 0
        _, cosines = sketch.nearest(code.neuron_ids, code.values, count, effort=effort, excluded_rows=own)
        return int((cosines >= due[row][-1] - 1e-9).sum()), count

    def recall(effort: Effort, rows: Int64[np.ndarray, " some"]) -> float:
        found, wanted = np.array([hits(effort, int(row)) for row in rows]).reshape(-1, 2).sum(axis=0)
        return float(found / wanted) if wanted else 1.0

    return measured(efforts(sketch.list_count, max(1, sketch.row_count)), sample_rows(firing), recall)


def _left_out(shards: Shards, neuron_ids: Sequence[int]) -> Bool[np.ndarray, " neurons"]:
    left_out = np.zeros(shards.neuron_count, dtype=bool)
    left_out[list(neuron_ids)] = True
    return left_out
