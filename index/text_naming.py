"""Adds names by the text tower to those from the corpus's own words; knows nothing of how either is judged.

The corpus's words come first: people wrote them of these very images. A word of the vocabulary is added where it fits
and no name that is there has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from index.exemplars import ExemplarStore
from index.image_vectors import ImageVectors
from index.naming import NAME_EXEMPLAR_COUNT, overlap
from index.text_names import Vocabulary, centred_vocabulary, name_by_text
from index.values import ExemplarKind, NeuronRow

__all__ = ["prepared_vocabulary", "with_text_names"]

_SAMPLE_IMAGES = 4096


def prepared_vocabulary(
    words: Sequence[str],
    vectors: Float[np.ndarray, "words embedding"],
    embeddings: ImageVectors,
    readable: Bool[np.ndarray, " rows"],
    image_mean: Float64[np.ndarray, " embedding"],
) -> Vocabulary:
    """Centre a vocabulary on its own mean, and see how its words scatter over a sample of the corpus.

    Args:
        words: at least two, all different.
        vectors: their unit text vectors.
        embeddings: those of every row.
        readable: rows that are not quarantined; at least one.
        image_mean: mean embedding of the readable rows.
    """
    rows = np.flatnonzero(readable)
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE_IMAGES)).astype(np.int64))
    sample: Int64[np.ndarray, " sample"] = rows[places]
    return centred_vocabulary(words, vectors, vectors.mean(axis=0), embeddings.take(sample), image_mean)


def with_text_names(
    rows: Sequence[NeuronRow],
    vocabulary: Vocabulary,
    exemplars: ExemplarStore,
    embeddings: ImageVectors,
    image_mean: Float64[np.ndarray, " embedding"],
) -> list[NeuronRow]:
    """Return the rows of all neurons with the names that the vocabulary adds.

    Args:
        rows: one per neuron, ascending, with the names from the corpus's words.
        vocabulary: what neurons may be called.
        exemplars: which images represent each neuron.
        embeddings: those of every row.
        image_mean: mean embedding of the readable rows.
    """
    return [_with_text_names(row, vocabulary, exemplars, embeddings, image_mean) for row in rows]


def _with_text_names(
    row: NeuronRow,
    vocabulary: Vocabulary,
    exemplars: ExemplarStore,
    embeddings: ImageVectors,
    image_mean: Float64[np.ndarray, " embedding"],
) -> NeuronRow:
    top = exemplars.exemplars(row.neuron_id, ExemplarKind.TOP, NAME_EXEMPLAR_COUNT)
    if not top:
        return row
    vectors = embeddings.take(np.array([exemplar.row for exemplar in top]))
    found = name_by_text(vectors, [exemplar.value for exemplar in top], image_mean, vocabulary)
    added = [name for name in found if not any(overlap(name.name, there.name) for there in row.names)]
    return replace(row, names=(*row.names, *added))
