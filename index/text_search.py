"""Finds neurons by a text vector, where the encoder has a text tower; knows nothing of texts or towers.

A neuron is represented by its top exemplars: the activation-weighted mean of their embeddings, less the mean of the
corpus, at unit norm. Both sides are centred on their own mean, because image and text vectors of one model live in
two separate cones (Liang et al. 2022, "Mind the gap"), whose offset would otherwise favour the same neurons for every
text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64

from index.arrays import map_array
from index.exemplars import ExemplarStore
from index.image_vectors import ImageVectors
from index.tops import TOP_LIMIT
from index.values import ExemplarKind
from phosphene.durable_files import save_array

__all__ = ["TextSearch", "mean_embedding", "read_image_mean", "read_text_mean", "write_text_search"]

_FOLDER = "text"
_TEXT_MEAN = "text_mean.npy"
_IMAGE_MEAN = "image_mean.npy"
_BLOCK_ROWS = 8192


def write_text_search(
    folder: Path,
    exemplars: ExemplarStore,
    embeddings: ImageVectors,
    image_mean: Float64[np.ndarray, " embedding"],
    text_mean: Float32[np.ndarray, " embedding"],
    *,
    neuron_count: int,
) -> None:
    """Represent every neuron in the space of the text vectors, under `folder`/text.

    Args:
        folder: the index being written.
        exemplars: which images represent each neuron.
        embeddings: those of every row.
        image_mean: mean embedding of the readable rows.
        text_mean: mean of text vectors of the corpus's labels and captions; zeros where it has neither.
        neuron_count: neurons of the sparse autoencoder.
    """
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
    save_array(target / "neuron_embeddings.npy", vectors)
    save_array(target / _IMAGE_MEAN, image_mean.astype(np.float32))
    save_array(target / _TEXT_MEAN, text_mean.astype(np.float32))


def read_image_mean(folder: Path) -> Float64[np.ndarray, " embedding"]:
    """Return the mean embedding of an index's readable rows, as it was stored.

    Raises:
        ArtefactDamaged: it is no such array.
    """
    mean: Float64[np.ndarray, " embedding"] = map_array(folder / _FOLDER / _IMAGE_MEAN, np.float32, 1).astype(
        np.float64
    )
    return mean


def read_text_mean(folder: Path) -> Float32[np.ndarray, " embedding"]:
    """Map the mean text vector of an index.

    Raises:
        ArtefactDamaged: it is no such array.
    """
    mean: Float32[np.ndarray, " embedding"] = map_array(folder / _FOLDER / _TEXT_MEAN, np.float32, 1)
    return mean


def mean_embedding(embeddings: ImageVectors, readable: Bool[np.ndarray, " rows"]) -> Float64[np.ndarray, " embedding"]:
    """Return the mean over the readable rows."""
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
    """Neurons by a vector of the text tower; memory-mapped."""

    def __init__(self, folder: Path, alive: Bool[np.ndarray, " neurons"]) -> None:
        """Map the vectors of the neurons.

        Args:
            folder: the index.
            alive: neurons that fire on some image; others are never found.

        Raises:
            ArtefactDamaged: an array is not what it should be.
        """
        source = folder / _FOLDER
        self._neurons: Float16[np.ndarray, "neurons embedding"] = map_array(
            source / "neuron_embeddings.npy", np.float16, 2
        )
        self._text_mean = read_text_mean(folder)
        self._alive = alive

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return int(self._neurons.shape[1])

    def neurons(self, text_vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine with the centred text vector), best first, ties by neuron id."""
        query = _unit(_unit(text_vector) - self._text_mean)
        blocks = (self._neurons[start : start + _BLOCK_ROWS] for start in range(0, len(self._neurons), _BLOCK_ROWS))
        scores = np.concatenate([block.astype(np.float32) @ query for block in blocks])
        neurons = np.flatnonzero(self._alive)
        order = neurons[np.lexsort((neurons, -scores[neurons]))][:count]
        return [(int(neuron), float(np.clip(scores[neuron], -1.0, 1.0))) for neuron in order]


def _unit(vector: Float32[np.ndarray, " embedding"]) -> Float32[np.ndarray, " embedding"]:
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
