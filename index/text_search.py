"""Finds neurons and images by a text vector, where the encoder has a text tower; knows nothing of texts or towers.

A neuron is represented by its top exemplars: the activation-weighted mean of their embeddings, less the mean of the
corpus, at unit norm. Both sides are centred on their own mean, because image and text vectors of one model live in
two separate cones (Liang et al. 2022, "Mind the gap"), whose offset would otherwise favour the same neurons for every
text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int64

from index.arrays import map_array
from index.exemplars import ExemplarStore
from index.shards import Shards
from index.tops import TOP_LIMIT
from index.values import ExemplarKind
from phosphene.errors import ArtefactDamaged

__all__ = ["EMBEDDINGS_FILE", "Embeddings", "TextSearch", "write_text_search"]

EMBEDDINGS_FILE = "embeddings.npy"
_FOLDER = "text"
_BLOCK_ROWS = 8192


class Embeddings:
    """Every row's embedding, memory-mapped shard by shard."""

    def __init__(self, shards: Shards) -> None:
        """Map `embeddings.npy` of every shard.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        self._shards = shards
        self.parts: list[Float16[np.ndarray, "rows embedding"]] = [
            map_array(shard.folder / EMBEDDINGS_FILE, np.float16, 2) for shard in shards
        ]
        wrong = [
            f"{shard.folder.name}: {part.shape}"
            for shard, part in zip(shards, self.parts, strict=True)
            if part.shape != (shard.codes.row_count, self.width)
        ]
        if wrong:
            raise ArtefactDamaged(f"{EMBEDDINGS_FILE} has another shape in {', '.join(wrong)}: build the index again")

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self.parts[0].shape[1])

    def take(self, rows: Int64[np.ndarray, " rows"]) -> Float16[np.ndarray, "rows embedding"]:
        """Return the embeddings of rows of the index."""
        taken = np.empty((len(rows), self.width), dtype=np.float16)
        for number, places in self._shards.parts(rows):
            taken[places] = self.parts[number][rows[places] - self._shards[number].rows.start]
        return taken


def write_text_search(
    folder: Path,
    exemplars: ExemplarStore,
    embeddings: Embeddings,
    readable: Bool[np.ndarray, " rows"],
    text_mean: Float32[np.ndarray, " embedding"],
    *,
    neuron_count: int,
) -> None:
    """Represent every neuron in the space of the text vectors, under `folder`/text.

    Args:
        folder: the index being written.
        exemplars: which images represent each neuron.
        embeddings: those of every row.
        readable: rows that are not quarantined.
        text_mean: mean of text vectors of the corpus's labels and captions; zeros where it has neither.
        neuron_count: neurons of the sparse autoencoder.
    """
    image_mean = _mean(embeddings, readable)
    vectors = np.zeros((neuron_count, embeddings.width), dtype=np.float16)
    for neuron_id in range(neuron_count):
        top = exemplars.exemplars(neuron_id, ExemplarKind.TOP, TOP_LIMIT)
        if not top:
            continue
        weights = np.array([exemplar.value for exemplar in top])
        chosen = embeddings.take(np.array([exemplar.row for exemplar in top])).astype(np.float64)
        mean = weights @ chosen / weights.sum() - image_mean
        vectors[neuron_id] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    target = folder / _FOLDER
    target.mkdir()
    np.save(target / "neuron_embeddings.npy", vectors)
    np.save(target / "image_mean.npy", image_mean.astype(np.float32))
    np.save(target / "text_mean.npy", text_mean.astype(np.float32))


def _mean(embeddings: Embeddings, readable: Bool[np.ndarray, " rows"]) -> Float64[np.ndarray, " embedding"]:
    total = np.zeros(embeddings.width, dtype=np.float64)
    first = 0
    for part in embeddings.parts:
        for start in range(0, len(part), _BLOCK_ROWS):
            block = part[start : start + _BLOCK_ROWS]
            usable = readable[first + start : first + start + len(block)]
            total += block[usable].astype(np.float64).sum(axis=0)
        first += len(part)
    return total / max(1, int(readable.sum()))


class TextSearch:
    """Neurons and images by a vector of the text tower; memory-mapped."""

    def __init__(
        self,
        folder: Path,
        embeddings: Embeddings,
        alive: Bool[np.ndarray, " neurons"],
        readable: Bool[np.ndarray, " rows"],
    ) -> None:
        """Map the vectors of the neurons.

        Args:
            folder: the index.
            embeddings: those of every row.
            alive: neurons that fire on some image; others are never found.
            readable: rows that are not quarantined; others are never found.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        self._embeddings = embeddings
        source = folder / _FOLDER
        self._neurons: Float16[np.ndarray, "neurons embedding"] = map_array(
            source / "neuron_embeddings.npy", np.float16, 2
        )
        self._text_mean: Float32[np.ndarray, " embedding"] = map_array(source / "text_mean.npy", np.float32, 1)
        self._alive = alive
        self._readable = readable

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return self._embeddings.width

    def neurons(self, text_vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine with the centred text vector), best first, ties by neuron id."""
        query = _unit(_unit(text_vector) - self._text_mean)
        return _best([self._neurons], query, self._alive, count)

    def images(self, vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (row, cosine with the vector), best first, ties by row."""
        return _best(self._embeddings.parts, _unit(vector), self._readable, count)


def _best(
    vectors: Sequence[Float16[np.ndarray, "_ embedding"]],
    query: Float32[np.ndarray, " embedding"],
    eligible: Bool[np.ndarray, " items"],
    count: int,
) -> list[tuple[int, float]]:
    scores = np.concatenate([block.astype(np.float32) @ query for part in vectors for block in _blocks(part)])
    items = np.flatnonzero(eligible)
    order = items[np.lexsort((items, -scores[items]))][:count]
    return [(int(item), float(np.clip(scores[item], -1.0, 1.0))) for item in order]


def _blocks(vectors: Float16[np.ndarray, "items embedding"]) -> Iterator[Float16[np.ndarray, "part embedding"]]:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        yield vectors[start : start + _BLOCK_ROWS]


def _unit(vector: Float32[np.ndarray, " embedding"]) -> Float32[np.ndarray, " embedding"]:
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
