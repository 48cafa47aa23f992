"""Names for neurons by a text tower: the words of a vocabulary whose vectors lie nearest to what the exemplars share.

A word is scored by the cosine of its vector with each top exemplar's embedding, both less their own mean (image and
text vectors live in two cones: Liang et al. 2022, "Mind the gap"), averaged with the activations as weights and shrunk
where exemplars are few. This is the rule of `index.naming` with cosines in place of "bears the word": what the corpus
has on average is taken off, and chance is judged by how much the cosines scatter over the corpus. Knows nothing of
files or of the tower.

    vocabulary = centred_vocabulary(words, text_vectors, text_mean, sample_embeddings, image_mean)
    name_by_text(exemplar_embeddings, activations, image_mean, vocabulary)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from index.naming import effective_count, overlap, trust_in
from index.values import NameSource, NeuronName

__all__ = ["Vocabulary", "centred_vocabulary", "name_by_text"]

_NAME_LIMIT = 3
_LEAST_EXEMPLARS = 3
_LEAST_SCORE = 0.1
_LEAST_DEVIATIONS = 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """Words that may name a neuron."""

    words: tuple[str, ...]
    """What they are."""
    vectors: Float64[np.ndarray, "words embedding"]
    """Their text vectors, less the mean text vector, at norm 1."""
    means: Float64[np.ndarray, " words"]
    """Mean over the corpus of the cosine with centred image embeddings."""
    deviations: Float64[np.ndarray, " words"]
    """Standard deviation of the same."""


def centred_vocabulary(
    words: Sequence[str],
    text_vectors: Float[np.ndarray, "words embedding"],
    text_mean: Float[np.ndarray, " embedding"],
    sample: Float[np.ndarray, "images embedding"],
    image_mean: Float[np.ndarray, " embedding"],
) -> Vocabulary:
    """Prepare a vocabulary.

    Args:
        words: in any order; ties between names go by it.
        text_vectors: of the words, at any norm.
        text_mean: what to centre unit text vectors on: the mean over the vocabulary, or over the corpus's own words.
        sample: embeddings of a sample of the corpus's readable images, at least one.
        image_mean: mean embedding of the corpus.
    """
    vectors = _unit(_unit(text_vectors.astype(np.float64)) - text_mean)
    cosines = _unit(sample.astype(np.float64) - image_mean) @ vectors.T
    return Vocabulary(words=tuple(words), vectors=vectors, means=cosines.mean(axis=0), deviations=cosines.std(axis=0))


def name_by_text(
    exemplars: Float[np.ndarray, "exemplars embedding"],
    weights: Sequence[float],
    image_mean: Float[np.ndarray, " embedding"],
    vocabulary: Vocabulary,
) -> tuple[NeuronName, ...]:
    """Name a neuron by its top exemplars.

    Args:
        exemplars: their embeddings.
        weights: the activation of each, greater than 0.
        image_mean: mean embedding of the corpus.
        vocabulary: what it may be called.

    Returns:
        Up to three names, best first, none a part of another; none for fewer than three exemplars. A name is left out
        where it is weak: a score below 0.1, or one that chance alone might give (less than 4 standard deviations of
        the corpus's cosines above 0, for as many images).
    """
    if len(weights) < _LEAST_EXEMPLARS:
        return ()
    activations = np.array(weights, dtype=np.float64)
    shared = activations @ _unit(exemplars.astype(np.float64) - image_mean) / activations.sum()
    scores = trust_in(weights) * (vocabulary.vectors @ shared - vocabulary.means)
    least = _LEAST_DEVIATIONS * vocabulary.deviations / np.sqrt(effective_count(weights))
    order = [int(word) for word in np.argsort(-scores, kind="stable")]
    named: list[NeuronName] = []
    for word in order:
        if len(named) == _NAME_LIMIT or scores[word] < _LEAST_SCORE:
            break
        text = vocabulary.words[word]
        if scores[word] < least[word] or any(overlap(text, name.name) for name in named):
            continue
        rival = next((other for other in order if not overlap(text, vocabulary.words[other])), None)
        margin = scores[word] - max(0.0, float(scores[rival])) if rival is not None else scores[word]
        named.append(
            NeuronName(name=text, score=float(scores[word]), margin=float(margin), source=NameSource.VOCABULARY)
        )
    return tuple(named)


def _unit(vectors: Float64[np.ndarray, "vectors embedding"]) -> Float64[np.ndarray, "vectors embedding"]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 1e-12, norms, 1.0)
