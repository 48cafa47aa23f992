"""A vector of norm 1 for every image, as shards store them: projected embeddings, or residuals at the site.

`embeddings.npy` holds what a text vector is compared with, where the encoder has a text tower; `residuals.npy` the
residual that the sparse autoencoder read, the mean over the tokens of the site. Memory-mapped; knows nothing of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64

from index.arrays import map_array
from index.shards import Shards
from phosphene.errors import ArtefactDamaged

__all__ = ["EMBEDDINGS_FILE", "RESIDUALS_FILE", "ImageVectors", "stored_vectors"]

EMBEDDINGS_FILE = "embeddings.npy"
RESIDUALS_FILE = "residuals.npy"
_BLOCK_ROWS = 8192


def stored_vectors(
    vectors: Float32[np.ndarray, "images width"], readable: Bool[np.ndarray, " images"]
) -> Float16[np.ndarray, "images width"]:
    """Bring vectors to norm 1, in float16; zeros for a row that is quarantined."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1.0)
    stored: Float16[np.ndarray, "images width"] = np.where(readable[:, None], units, 0.0).astype(np.float16)
    return stored


class ImageVectors:
    """Every row's vector of one kind, memory-mapped shard by shard."""

    def __init__(self, shards: Shards, file: str = EMBEDDINGS_FILE) -> None:
        """Map the file of every shard.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        self._shards = shards
        self.parts: list[Float16[np.ndarray, "rows width"]] = [
            map_array(shard.folder / file, np.float16, 2) for shard in shards
        ]
        wrong = [
            f"{shard.folder.name}: {part.shape}"
            for shard, part in zip(shards, self.parts, strict=True)
            if part.shape != (shard.codes.row_count, self.width)
        ]
        if wrong:
            raise ArtefactDamaged(f"{file} has another shape in {', '.join(wrong)}: build the index again")

    @property
    def row_count(self) -> int:
        """Rows of the index."""
        return self._shards.row_count

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.parts[0].shape[1])

    def take(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows width"]:
        """Return the vectors of rows of the index."""
        taken = np.empty((len(rows), self.width), dtype=np.float32)
        for number, places in self._shards.parts(rows):
            taken[places] = self.parts[number][rows[places] - self._shards[number].rows.start]
        return taken

    def shards(self) -> Iterator[Iterable[tuple[int, Float32[np.ndarray, "rows width"]]]]:
        """Yield, shard by shard, the first row and the vectors of blocks."""
        for shard, part in zip(self._shards, self.parts, strict=True):
            yield _blocks(part, shard.rows.start)


def _blocks(
    part: Float16[np.ndarray, "rows width"], first: int
) -> Iterator[tuple[int, Float32[np.ndarray, "rows width"]]]:
    for start in range(0, len(part), _BLOCK_ROWS):
        yield first + start, part[start : start + _BLOCK_ROWS].astype(np.float32)
