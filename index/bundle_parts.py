"""What putting an index together needs of a bundle: its directions, and the mean of its text vectors.

A build asks the bundle itself; a compaction, which runs no encoder, takes what the earlier index holds of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from index.directions import DIRECTIONS_FILE, write_directions
from index.image_table import ImageTable
from index.text_search import read_text_mean
from index.vocabulary import read_words
from phosphene.errors import InputError, ReadoutMissing
from phosphene.pipeline import Pipeline

__all__ = ["BundleParts", "LoadedBundle", "StoredBundle"]

_TEXT_SAMPLE_COUNT = 128


class StoredBundle:
    """What a finished index holds: its text mean is over its own words."""

    def __init__(self, index: Path) -> None:
        """Take the index's folder, whose digests have been checked."""
        self._index = index

    def write_directions(self, folder: Path) -> None:
        """Copy them."""
        shutil.copyfile(self._index / DIRECTIONS_FILE, folder / DIRECTIONS_FILE)

    def text_mean(self, images: ImageTable) -> Float32[np.ndarray, " embedding"]:
        """Return the index's own."""
        return read_text_mean(self._index)

    def vocabulary(self) -> tuple[Sequence[str], Float32[np.ndarray, "words embedding"]] | None:
        """Return the words that its neurons were named with, and their vectors; None where there are none."""
        return read_words(self._index)


class LoadedBundle:
    """A bundle that is ready to run."""

    def __init__(self, pipeline: Pipeline, words: Sequence[str] = ()) -> None:
        """Take the bundle, and words to name neurons with; none: its own, if any."""
        self._pipeline, self._words = pipeline, words

    def write_directions(self, folder: Path) -> None:
        """Write those of its sparse autoencoder."""
        write_directions(folder, self._pipeline.bundle.sae.directions.detach().cpu().numpy())

    def text_mean(self, images: ImageTable) -> Float32[np.ndarray, " embedding"]:
        """Have its text tower read the words."""
        pipeline = self._pipeline
        width = pipeline.engine.encoder.spec.embedding_width
        assert width is not None
        texts = sorted(
            {text for name in ("label", "caption") for part in images.columns(name) for text in part if text}
        )
        if not texts:
            return np.zeros(width, dtype=np.float32)
        places = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _TEXT_SAMPLE_COUNT)).astype(np.int64))
        vectors = _text_vectors([texts[place] for place in places], pipeline)
        if not vectors:
            return np.zeros(width, dtype=np.float32)
        mean: Float32[np.ndarray, " embedding"] = np.stack(vectors).astype(np.float64).mean(axis=0).astype(np.float32)
        return mean

    def vocabulary(self) -> tuple[Sequence[str], Float32[np.ndarray, "words embedding"]] | None:
        """Return the words to name neurons with, and their unit text vectors; None where there are fewer than two."""
        if self._words:
            vectors: Float32[np.ndarray, "words embedding"] = self._pipeline.text_vectors(self._words)
            return self._words, vectors
        own = self._pipeline.bundle.vocabulary
        return None if own is None or len(own.names) < 2 else (own.names, own.vectors)


BundleParts = LoadedBundle | StoredBundle
"""What an index holds of its bundle."""


def _text_vectors(texts: list[str], pipeline: Pipeline) -> list[Float32[np.ndarray, " embedding"]]:
    """Return the vectors of the texts that the text tower reads; none where the encoder lacks its tokenizer."""
    try:
        return list(pipeline.text_vectors(texts))
    except ReadoutMissing:
        return []
    except InputError:  # A caption may be longer than the text tower reads.
        vectors: list[Float32[np.ndarray, " embedding"]] = []
        for text in texts:
            with suppress(InputError):
                vectors += list(pipeline.text_vectors([text]))
        return vectors
