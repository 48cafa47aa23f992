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
from jaxtyping import Bool, Float16, Float32, Float64
from numpy.lib.format import open_memmap

from index.arrays import map_array
from index.exemplars import ExemplarStore
from index.postings import Postings
from index.values import ExemplarKind

__all__ = ["TextSearch", "concatenate_embeddings", "write_text_search"]

EMBEDDINGS_FILE = "embeddings.npy"
_FOLDER = "text"
_BLOCK_ROWS = 8192


def concatenate_embeddings(folder: Path, parts: Sequence[Path]) -> None:
    """Join the embeddings of shards, in order, into `embeddings.npy`."""
    arrays = [map_array(part / EMBEDDINGS_FILE, np.float16, 2) for part in parts]
    shape = (sum(len(array) for array in arrays), arrays[0].shape[1])
    joined = open_memmap(folder / EMBEDDINGS_FILE, mode="w+", dtype=np.float16, shape=shape)
    start = 0
    for array in arrays:
        joined[start : start + len(array)] = array
        start += len(array)
    joined.flush()


def write_text_search(
    folder: Path,
    postings: Postings,
    exemplars: ExemplarStore,
    readable: Bool[np.ndarray, " rows"],
    text_mean: Float32[np.ndarray, " embedding"],
) -> None:
    """Represent every neuron in the space of the text vectors, under `folder`/text.

    Args:
        folder: the index being written; `embeddings.npy` lies there already.
        postings: every neuron's images.
        exemplars: which of them represent it.
        readable: rows that are not quarantined.
        text_mean: mean of text vectors of the corpus's labels and captions; zeros where it has neither.
    """
    embeddings = map_array(folder / EMBEDDINGS_FILE, np.float16, 2)
    image_mean = _mean(embeddings, readable)
    vectors = np.zeros((postings.neuron_count, embeddings.shape[1]), dtype=np.float16)
    for neuron_id in range(postings.neuron_count):
        places = exemplars.places(neuron_id, ExemplarKind.TOP)
        if not len(places):
            continue
        weights = postings.values(neuron_id)[places].astype(np.float64)
        chosen = embeddings[postings.rows(neuron_id)[places]].astype(np.float64)
        mean = weights @ chosen / weights.sum() - image_mean
        vectors[neuron_id] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    target = folder / _FOLDER
    target.mkdir()
    np.save(target / "neuron_embeddings.npy", vectors)
    np.save(target / "image_mean.npy", image_mean.astype(np.float32))
    np.save(target / "text_mean.npy", text_mean.astype(np.float32))


def _mean(
    embeddings: Float16[np.ndarray, "rows embedding"], readable: Bool[np.ndarray, " rows"]
) -> Float64[np.ndarray, " embedding"]:
    total = np.zeros(embeddings.shape[1], dtype=np.float64)
    for start in range(0, len(embeddings), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        total += embeddings[block][readable[block]].astype(np.float64).sum(axis=0)
    return total / max(1, int(readable.sum()))


class TextSearch:
    """Neurons and images by a vector of the text tower; memory-mapped."""

    def __init__(self, folder: Path, alive: Bool[np.ndarray, " neurons"], readable: Bool[np.ndarray, " rows"]) -> None:
        """Map the embeddings.

        Args:
            folder: the index.
            alive: neurons that fire on some image; others are never found.
            readable: rows that are not quarantined; others are never found.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        self._embeddings: Float16[np.ndarray, "rows embedding"] = map_array(folder / EMBEDDINGS_FILE, np.float16, 2)
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
        return int(self._embeddings.shape[1])

    def neurons(self, text_vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine with the centred text vector), best first, ties by neuron id."""
        query = _unit(_unit(text_vector) - self._text_mean)
        return _best(self._neurons, query, self._alive, count)

    def images(self, vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (row, cosine with the vector), best first, ties by row."""
        return _best(self._embeddings, _unit(vector), self._readable, count)


def _best(
    vectors: Float16[np.ndarray, "items embedding"],
    query: Float32[np.ndarray, " embedding"],
    eligible: Bool[np.ndarray, " items"],
    count: int,
) -> list[tuple[int, float]]:
    scores = np.concatenate([block.astype(np.float32) @ query for block in _blocks(vectors)])
    items = np.flatnonzero(eligible)
    order = items[np.lexsort((items, -scores[items]))][:count]
    return [(int(item), float(np.clip(scores[item], -1.0, 1.0))) for item in order]


def _blocks(vectors: Float16[np.ndarray, "items embedding"]) -> Iterator[Float16[np.ndarray, "part embedding"]]:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        yield vectors[start : start + _BLOCK_ROWS]


def _unit(vector: Float32[np.ndarray, " embedding"]) -> Float32[np.ndarray, " embedding"]:
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
