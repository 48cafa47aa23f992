"""Images with similar codes: exactly by default, from sketches where the corpus is very large or it was asked for.

Neurons that fire on a large share of the images are left out of the comparison: nearly every code has them, and they
say little. Which ones is fixed when the index is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from index.retrieval.exact import ExactSearch, SearchShard
from index.shards import Shards
from index.sketch import SketchSearch
from index.values import SimilarImage
from phosphene.codes import ImageCode

__all__ = ["SimilarImages", "search_recall", "search_shards"]


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
    """Nearest rows by the cosine of codes."""

    def __init__(
        self,
        folder: Path,
        shards: Shards,
        *,
        left_out_neuron_ids: Sequence[int],
        sketch_seed: int | None,
        recall: float,
    ) -> None:
        """Make the search ready.

        Args:
            folder: the index.
            shards: its shards.
            left_out_neuron_ids: neurons that do not count.
            sketch_seed: seed of the sign vectors of `sketch.faiss`; None searches exactly.
            recall: share of the exact nearest that this search finds, as measured when the index was built.
        """
        self._shards = shards
        self._recall = recall
        self._left_out: Bool[np.ndarray, " neurons"] = np.zeros(shards.neuron_count, dtype=bool)
        self._left_out[list(left_out_neuron_ids)] = True
        self._exact = ExactSearch(search_shards(shards), neuron_count=shards.neuron_count)
        self._sketch = (
            None if sketch_seed is None else SketchSearch(folder, shards, left_out=self._left_out, seed=sketch_seed)
        )

    def nearest(self, code: ImageCode, count: int, *, exclude_row: int | None = None) -> list[SimilarImage]:
        """Return up to `count` rows by descending cosine with `code`, ties by row; rows that share no neuron never.

        Args:
            code: of any image, live or stored.
            count: at least 1.
            exclude_row: a row to leave out: the query's own.
        """
        if not len(code):
            return []
        excluded: Int64[np.ndarray, " excluded"] = np.array(
            [] if exclude_row is None else [exclude_row], dtype=np.int64
        )
        if self._sketch is None:
            rows, cosines = self._exact.nearest(
                code.neuron_ids, code.values, count, left_out=self._left_out, excluded_rows=excluded
            )
        else:
            rows, cosines = self._sketch.nearest(code.neuron_ids, code.values, count, excluded_rows=excluded)
        return [self._similar(code, int(row), float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]

    def _similar(self, code: ImageCode, row: int, cosine: float) -> SimilarImage:
        other = self._shards.code(row)
        shared, in_code, in_other = np.intersect1d(
            code.neuron_ids, other.neuron_ids, assume_unique=True, return_indices=True
        )
        order = np.lexsort((shared, -code.values[in_code] * other.values[in_other]))
        return SimilarImage(
            row=row,
            similarity=min(cosine, 1.0),
            shared_neuron_ids=tuple(int(shared[place]) for place in order if not self._left_out[shared[place]]),
            recall=self._recall,
        )


def search_recall(
    approximate: SimilarImages, exact: SimilarImages, shards: Shards, *, queries: int = 32, depth: int = 10
) -> float:
    """Return the share of the exact nearest rows that a search finds, over evenly spaced rows; 1 if none fires.

    Ties count as found: a row as near as the last of the exact ones is as good.
    """
    firing = np.concatenate([np.flatnonzero(np.diff(shard.codes.offsets)) + shard.rows.start for shard in shards])
    found, wanted = 0, 0
    for place in np.unique(np.linspace(0, len(firing) - 1, min(len(firing), queries)).astype(np.int64)):
        row = int(firing[place])
        code = shards.code(row)
        best = exact.nearest(code, depth, exclude_row=row)
        if best:
            wanted += len(best)
            nearest = approximate.nearest(code, len(best), exclude_row=row)
            found += sum(image.similarity >= best[-1].similarity - 1e-9 for image in nearest)
    return found / wanted if wanted else 1.0
