"""Names by a text tower: what the exemplars share, across the gap between image and text vectors."""

import numpy as np
import pytest

from index.text_names import Vocabulary, centred_vocabulary, name_by_text
from index.values import NameSource

WORDS = ["red", "star", "red star", "sea", "wall", "moss"]
WIDTH = 48
GENERATOR = np.random.default_rng(0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


CONCEPTS = _unit(GENERATOR.normal(size=(len(WORDS), WIDTH)))
CONCEPTS[2] = _unit(CONCEPTS[0] + CONCEPTS[1])
IMAGE_GAP, TEXT_GAP = 3 * _unit(GENERATOR.normal(size=(2, WIDTH)))
TEXTS = _unit(CONCEPTS + TEXT_GAP)


def _images(shown: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(shown), WIDTH))
    return _unit(CONCEPTS[shown] + IMAGE_GAP + 0.1 * noise)


CORPUS = _images(np.arange(1200) % len(WORDS), 1)
MEAN = CORPUS.mean(axis=0)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return centred_vocabulary(WORDS, TEXTS, TEXTS.mean(axis=0), CORPUS, MEAN)


@pytest.mark.parametrize("concept", [3, 4, 5])
def test_names_what_the_exemplars_share(vocabulary: Vocabulary, concept: int) -> None:
    exemplars = _images(np.full(32, concept), 2)
    names = name_by_text(exemplars, [1.0] * 32, MEAN, vocabulary)
    assert names[0].name == WORDS[concept]
    assert names[0].source is NameSource.VOCABULARY
    assert names[0].margin > 0.2


def test_the_score_is_the_weighted_mean_of_centred_cosines(vocabulary: Vocabulary) -> None:
    exemplars, weights = _images(np.array([3] * 24 + [4] * 8), 3), np.linspace(3.0, 1.0, 32)
    query = _unit(TEXTS[3] - TEXTS.mean(axis=0))
    cosines = [float(_unit(exemplar - MEAN) @ query) for exemplar in exemplars]
    usual = np.mean([float(_unit(image - MEAN) @ query) for image in CORPUS])
    count = weights.sum() ** 2 / (weights**2).sum()
    due = count / (count + 2) * (np.average(cosines, weights=weights) - usual)
    name = next(name for name in name_by_text(exemplars, weights.tolist(), MEAN, vocabulary) if name.name == "sea")
    assert name.score == pytest.approx(due)


def test_strong_exemplars_count_more(vocabulary: Vocabulary) -> None:
    exemplars = _images(np.array([3] * 16 + [4] * 16), 4)
    assert name_by_text(exemplars, [9.0] * 16 + [1.0] * 16, MEAN, vocabulary)[0].name == "sea"
    assert name_by_text(exemplars, [1.0] * 16 + [9.0] * 16, MEAN, vocabulary)[0].name == "wall"


def test_a_name_holds_no_other(vocabulary: Vocabulary) -> None:
    names = name_by_text(_images(np.full(32, 2), 5), [1.0] * 32, MEAN, vocabulary)
    assert [name.name for name in names] == ["red star"]
    assert names[0].margin > 0.2  # Its own words are no rivals.


def test_two_exemplars_give_no_name(vocabulary: Vocabulary) -> None:
    assert name_by_text(_images(np.full(2, 3), 6), [1.0] * 2, MEAN, vocabulary) == ()
    assert name_by_text(np.zeros((0, WIDTH)), [], MEAN, vocabulary) == ()


def test_random_exemplars_are_hardly_ever_named(vocabulary: Vocabulary) -> None:
    named = 0
    for seed in range(200):
        drawn = np.random.default_rng(seed).integers(0, len(WORDS), 32)
        named += bool(name_by_text(_images(drawn, seed), [1.0] * 32, MEAN, vocabulary))
    assert named <= 2


def test_a_word_that_scatters_over_the_corpus_needs_more(vocabulary: Vocabulary) -> None:
    loose = Vocabulary(
        words=vocabulary.words, vectors=vocabulary.vectors, means=vocabulary.means, deviations=np.full(len(WORDS), 9.0)
    )
    assert name_by_text(_images(np.full(32, 3), 7), [1.0] * 32, MEAN, loose) == ()
