"""Finds neurons by their directions: a flat FAISS index of unit decoder rows; knows nothing of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32

from phosphene.errors import ArtefactDamaged

__all__ = ["DirectionSearch", "write_directions"]

_FILE = "directions.faiss"


def write_directions(folder: Path, directions: Float32[np.ndarray, "neurons width"]) -> None:
    """Write `directions.faiss`: inner products of the directions at unit norm; a zero direction stays zero."""
    lengths = np.linalg.norm(directions.astype(np.float64), axis=1, keepdims=True)
    index = faiss.IndexFlatIP(directions.shape[1])
    index.add(np.ascontiguousarray(directions / np.where(lengths > 0, lengths, 1.0), dtype=np.float32))
    faiss.write_index(index, str(folder / _FILE))


class DirectionSearch:
    """Nearest neurons by the cosine of directions."""

    def __init__(self, folder: Path, neuron_count: int) -> None:
        """Load `directions.faiss`, whose digest has been checked.

        Raises:
            ArtefactDamaged: it holds another number of neurons.
        """
        self._index: Any = faiss.read_index(str(folder / _FILE))
        if self._index.ntotal != neuron_count:
            raise ArtefactDamaged(
                f"{folder / _FILE} holds {self._index.ntotal} directions of {neuron_count}: build the index again"
            )

    @property
    def width(self) -> int:
        """Length of a direction."""
        return int(self._index.d)

    def nearest(self, vector: Float32[np.ndarray, " width"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine), best first, ties by id; cosines of the zero vector are 0."""
        length = float(np.linalg.norm(vector))
        query = np.ascontiguousarray(vector / length if length > 0 else vector, dtype=np.float32)[None]
        cosines, neuron_ids = self._index.search(query, min(count, self._index.ntotal))
        found = sorted(zip(-cosines[0], neuron_ids[0], strict=True))
        return [(int(neuron_id), float(np.clip(-negated, -1.0, 1.0))) for negated, neuron_id in found]

    def like(self, neuron_id: int, count: int) -> list[tuple[int, float]]:
        """Return up to `count` other neurons by the cosine of their directions with this neuron's, best first."""
        direction = self._index.reconstruct(neuron_id)
        return [found for found in self.nearest(direction, count + 1) if found[0] != neuron_id][:count]
