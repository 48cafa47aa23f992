"""Finds neurons by their directions, exactly: unit decoder rows, stored as a flat FAISS index; knows no images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32

from index.faiss_files import save_faiss
from index.retrieval.nearest_directions import NearestDirections
from phosphene.errors import ArtefactDamaged

__all__ = ["DIRECTIONS_FILE", "DirectionSearch", "write_directions"]

DIRECTIONS_FILE = "directions.faiss"
"""Where in an index they lie."""


def write_directions(folder: Path, directions: Float32[np.ndarray, "neurons width"]) -> None:
    """Write `directions.faiss`: inner products of the directions at unit norm; a zero direction stays zero."""
    lengths = np.linalg.norm(directions.astype(np.float64), axis=1, keepdims=True)
    index = faiss.IndexFlatIP(directions.shape[1])
    index.add(np.ascontiguousarray(directions / np.where(lengths > 0, lengths, 1.0), dtype=np.float32))
    save_faiss(folder / DIRECTIONS_FILE, index)


class DirectionSearch:
    """Nearest neurons by the cosine of directions."""

    def __init__(self, folder: Path, neuron_count: int) -> None:
        """Load `directions.faiss`, whose digest has been checked.

        Raises:
            ArtefactDamaged: it holds another number of neurons.
        """
        index: Any = faiss.read_index(str(folder / DIRECTIONS_FILE))
        if index.ntotal != neuron_count:
            raise ArtefactDamaged(
                f"{folder / DIRECTIONS_FILE} holds {index.ntotal} directions of {neuron_count}: build the index again"
            )
        self._directions: Float32[np.ndarray, "neurons width"] = index.reconstruct_n(0, index.ntotal)
        # FAISS would answer ties in any order, and rounded to float32.
        self._search = NearestDirections(self._directions)

    @property
    def width(self) -> int:
        """Length of a direction."""
        return int(self._directions.shape[1])

    def nearest(self, vector: Float32[np.ndarray, " width"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine), best first, ties by id; cosines of the zero vector are 0."""
        length = float(np.linalg.norm(vector))
        neuron_ids, cosines = self._search.nearest(vector / np.float32(length) if length > 0 else vector, count)
        return list(zip(neuron_ids.tolist(), np.clip(cosines, -1.0, 1.0).tolist(), strict=True))

    def warm(self) -> None:
        """Ask once, so that no question waits for loops to be compiled."""
        self.nearest(np.ones(self.width, dtype=np.float32), 1)

    def like(self, neuron_id: int, count: int) -> list[tuple[int, float]]:
        """Return up to `count` other neurons by the cosine of their directions with this neuron's, best first."""
        found = self.nearest(self._directions[neuron_id], count + 1)
        return [other for other in found if other[0] != neuron_id][:count]
