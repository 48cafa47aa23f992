"""Images by a vector: those with the largest cosine of their stored vectors, among those that FAISS proposes.

The stored float16 vectors rank what is proposed. Flat vectors propose exactly; inverted lists find the share that was
measured when the index was built, with images of the corpus as queries.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from index.effort import Approximation, Effort, efforts, measured, sample_rows
from index.image_vectors import ImageVectors
from index.vector_index import VectorIndex, VectorLayout, write_vectors
from phosphene.errors import ArtefactDamaged

__all__ = ["EMBEDDINGS_INDEX", "RESIDUALS_INDEX", "VectorSearch", "write_vector_search"]

EMBEDDINGS_INDEX = "embeddings.faiss"
RESIDUALS_INDEX = "residuals.faiss"
_CANDIDATES_PER_RESULT = 8
_DEPTH = 10
# A sum of as many products as a vector has numbers is off by less than so much a number, at norm 1.
_FLOAT32_STEP = 2.0**-23
_EXACT = Effort(probe_count=0, candidate_count=128)


def write_vector_search(
    file: Path, vectors: ImageVectors, readable: Bool[np.ndarray, " rows"], layout: VectorLayout
) -> Approximation | None:
    """Write the FAISS index over all vectors; returns how well it finds the nearest, None where that is exact."""
    write_vectors(file, vectors, layout)
    search = VectorSearch(file, vectors, approximation=None)
    rows = np.flatnonzero(readable)
    if not search.list_count or not len(rows):
        return None
    sample = sample_rows(rows)
    wanted = np.stack([_unit(vector) for vector in vectors.take(sample)])
    nearest = _nearest(vectors, readable, wanted, own=sample)
    due = dict(zip(sample.tolist(), nearest, strict=True))

    def recall(effort: Effort, some: Int64[np.ndarray, " some"]) -> float:
        found, asked = 0, 0
        for row in some.tolist():
            vector = wanted[np.searchsorted(sample, row)]
            answer = search.nearest(vector, len(due[row]), shown=readable, exclude_rows=[row], effort=effort)
            found += sum(cosine >= due[row][-1] - 1e-6 for _, cosine in answer)
            asked += len(due[row])
        return found / asked if asked else 1.0

    return measured(efforts(search.list_count, vectors.row_count), sample, recall)


def _nearest(
    vectors: ImageVectors,
    readable: Bool[np.ndarray, " rows"],
    queries: Float32[np.ndarray, "queries width"],
    *,
    own: Int64[np.ndarray, " queries"],
) -> list[Float32[np.ndarray, " depth"]]:
    """The largest cosines of each query over all rows but its own, descending: brute force, block by block."""
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    for blocks in vectors.shards():
        for start, block in blocks:
            cosines = queries @ block.T
            cosines[:, ~readable[start : start + len(block)]] = -np.inf
            inside = np.flatnonzero((own >= start) & (own < start + len(block)))
            cosines[inside, own[inside] - start] = -np.inf
            best = -np.sort(-np.concatenate([best, cosines], axis=1), axis=1)[:, :_DEPTH]
    return [row[np.isfinite(row)] for row in best]


def _unit(vector: Float32[np.ndarray, " width"]) -> Float32[np.ndarray, " width"]:
    return (vector / max(float(np.linalg.norm(vector)), 1e-30)).astype(np.float32)


class VectorSearch:
    """Nearest rows by the cosine of their vectors; several threads may ask at a time."""

    def __init__(
        self,
        file: Path,
        vectors: ImageVectors,
        *,
        approximation: Approximation | None,
        device: str = "cpu",
    ) -> None:
        """Load the FAISS index, whose digest has been checked.

        Args:
            file: it.
            vectors: those of every row.
            approximation: how far the lists are looked through, and what that finds; None: the index is flat.
            device: where FAISS searches.

        Raises:
            ArtefactDamaged: the index holds other vectors.
            SettingError: the device cannot hold it.
        """
        self._vectors, self._approximation = vectors, approximation
        self._index = VectorIndex(file, device=device)
        if self._index.width != vectors.width or self._index.row_count > vectors.row_count:
            raise ArtefactDamaged(
                f"{file} holds {self._index.row_count} vectors of {self._index.width} numbers; due are "
                f"{vectors.row_count} of {vectors.width}: build the index again"
            )

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._vectors.width

    @property
    def list_count(self) -> int:
        """Inverted lists; 0: flat."""
        return self._index.list_count

    @property
    def recall(self) -> float:
        """Share of the nearest that it finds; 1 where it is exact."""
        return 1.0 if self._approximation is None else self._approximation.recall

    def vector(self, row: int) -> Float32[np.ndarray, " width"]:
        """Return a row's stored vector; zeros for a quarantined row."""
        vector: Float32[np.ndarray, " width"] = self._vectors.take(np.array([row], dtype=np.int64))[0]
        return vector

    def nearest(
        self,
        vector: Float32[np.ndarray, " width"],
        count: int,
        *,
        shown: Bool[np.ndarray, " rows"],
        exclude_rows: Collection[int] = (),
        effort: Effort | None = None,
    ) -> list[tuple[int, float]]:
        """Return up to `count` (row, cosine), best first, ties by row; none for the zero vector.

        Args:
            vector: of any norm.
            count: at least 1.
            shown: rows that may be found.
            exclude_rows: rows to leave out: those of the query's own image.
            effort: how far to look; None: as the index was measured.
        """
        if not np.any(vector):
            return []
        query, excluded = _unit(vector), np.array(list(exclude_rows), dtype=np.int64)
        chosen = effort or (_EXACT if self._approximation is None else self._approximation.effort)
        wanted = min(_CANDIDATES_PER_RESULT * count, self._index.quick_count)
        while True:
            proposed, estimates = self._index.propose(query, chosen, count=wanted)
            rows = np.sort(proposed[proposed >= 0])
            rows = rows[shown[rows] & ~np.isin(rows, excluded)]
            # Row by row, so that no cosine depends on which other rows were proposed.
            cosines = (self._vectors.take(rows).astype(np.float64) * query).sum(axis=1)
            order = np.lexsort((rows, -cosines))[:count]
            # Rows that may not be found, and of equal vectors those of later rows, can crowd the others out.
            is_all = len(proposed) >= self._index.row_count or proposed[-1] < 0
            if is_all and len(order) < count and chosen.probe_count < self._index.list_count:
                chosen = chosen.widened(self._index.list_count)
                continue
            is_enough = len(order) == count and (
                self._index.list_count > 0 or cosines[order[-1]] > estimates[-1] + self.width * _FLOAT32_STEP
            )
            if is_all or is_enough:
                break
            wanted = 8 * len(proposed)
        return [(int(rows[place]), float(np.clip(cosines[place], -1.0, 1.0))) for place in order]
