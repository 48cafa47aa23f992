"""Text search against a plain reference, with the gap between image and text vectors that real models have."""

from pathlib import Path

import numpy as np
import pytest

from index.exemplars import ExemplarStore, write_exemplars
from index.image_vectors import ImageVectors
from index.text_search import TextSearch, mean_embedding, write_text_search
from index.values import ExemplarKind
from phosphene.codes import ImageCode
from tests.index.shard_folders import write_shards

CONCEPTS = 6
WIDTH = 24


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """An index of one neuron per concept, and one dead neuron; images and texts live in two cones."""
    generator = np.random.default_rng(0)
    concepts = _unit(generator.normal(size=(CONCEPTS, WIDTH)))
    image_gap, text_gap = 3 * _unit(generator.normal(size=(2, WIDTH)))
    shown = np.arange(120) % CONCEPTS
    embeddings = _unit(concepts[shown] + image_gap + 0.1 * generator.normal(size=(120, WIDTH)))
    embeddings[0] = 0  # Quarantined.
    texts = _unit(concepts + text_gap).astype(np.float32)
    codes = [
        ImageCode(neuron_ids=np.array([concept], np.int32), values=np.array([1 + row / 100], np.float32))
        for row, concept in enumerate(shown)
    ]
    codes[0] = ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))
    shards = write_shards(tmp_path, codes, neuron_count=CONCEPTS + 1, size=50, embeddings=embeddings)
    write_exemplars(tmp_path, shards, np.ones(120, dtype=bool), top_count=10, spread_count=4)
    readable, mean = np.arange(120) > 0, texts.mean(axis=0)
    store = ExemplarStore(tmp_path)
    stored = ImageVectors(shards)
    write_text_search(tmp_path, store, stored, mean_embedding(stored, readable), mean, neuron_count=CONCEPTS + 1)
    return tmp_path, embeddings, texts


def _open(folder: Path) -> TextSearch:
    return TextSearch(folder, np.arange(CONCEPTS + 1) < CONCEPTS)


def test_texts_find_their_neurons_across_the_gap(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, texts = made
    search = _open(folder)
    for concept in range(CONCEPTS):
        found = search.neurons(texts[concept], 3)
        assert found[0][0] == concept
        assert found[0][1] > found[1][1] + 0.3


def test_neuron_embeddings_equal_the_reference(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, embeddings, texts = made
    top = ExemplarStore(folder).exemplars(2, ExemplarKind.TOP, 10)
    stored = embeddings.astype(np.float16).astype(np.float64)
    weights = np.array([exemplar.value for exemplar in top])
    mean = (weights[:, None] * stored[[exemplar.row for exemplar in top]]).sum(0) / weights.sum()
    due = _unit(mean - stored[1:].mean(axis=0))
    query = _unit(texts[2] - texts.mean(axis=0))
    assert _open(folder).neurons(texts[2], 1)[0][1] == pytest.approx(float(due @ query), abs=2e-3)


def test_dead_neurons_are_not_found(made: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, texts = made
    assert sorted(neuron_id for neuron_id, _ in _open(folder).neurons(texts[0], 100)) == list(range(CONCEPTS))
