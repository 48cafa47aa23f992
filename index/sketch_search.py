"""Images with similar codes among those that sketches propose; each is scored from its stored code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from index.effort import Effort
from index.retrieval.exact import ExactSearch
from index.sketch import SKETCH_FILE, kept_signs, sketches
from index.vector_index import VectorIndex

__all__ = ["SketchSearch"]

_CANDIDATES_PER_RESULT = 8


class SketchSearch:
    """Nearest rows by the cosine of codes, among those that the sketches propose."""

    def __init__(
        self,
        folder: Path,
        codes: ExactSearch,
        *,
        left_out: Bool[np.ndarray, " neurons"],
        seed: int,
        device: str = "cpu",
    ) -> None:
        """Load `sketch.faiss`, whose digest has been checked.

        Args:
            folder: the index.
            codes: scores rows from their stored codes.
            left_out: neurons that do not count.
            seed: of the sign vectors.
            device: where FAISS searches.

        Raises:
            SettingError: the device cannot hold the sketches.
        """
        self._codes, self._left_out = codes, left_out
        self._signs = kept_signs(left_out, seed)
        self._index = VectorIndex(folder / SKETCH_FILE, device=device)

    @property
    def list_count(self) -> int:
        """Inverted lists; 0: every sketch is compared."""
        return self._index.list_count

    @property
    def row_count(self) -> int:
        """Rows that have a sketch."""
        return self._index.row_count

    def nearest(
        self,
        neuron_ids: Int32[np.ndarray, " active"],
        values: Float32[np.ndarray, " active"],
        count: int,
        *,
        effort: Effort,
        excluded_rows: Int64[np.ndarray, " excluded"],
    ) -> tuple[Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]:
        """Return up to `count` rows and their cosines, best first, ties by row; rows that share no neuron never."""
        query = sketches(np.array([0, len(neuron_ids)], dtype=np.int64), neuron_ids, values, self._signs)[0]
        wanted = min(_CANDIDATES_PER_RESULT * count, self._index.quick_count)
        while True:
            proposed, _ = self._index.propose(query, effort, count=wanted)
            rows = proposed[proposed >= 0]
            # Rows that may not be found can crowd the others out.
            if len(excluded_rows) <= count or 2 * np.isin(rows, excluded_rows).sum() <= len(rows):
                break
            if len(rows) == len(proposed) < self._index.row_count:
                wanted = 8 * len(proposed)
            elif effort.probe_count < self._index.list_count:
                effort = effort.widened(self._index.list_count)
            else:
                break
        return self._codes.ranked(neuron_ids, values, rows, count, left_out=self._left_out, excluded_rows=excluded_rows)
