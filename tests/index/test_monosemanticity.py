"""The score in linear time equals its definition over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import monosemanticity as module
from index.monosemanticity import CodedEmbeddings, monosemanticity
from tests.index.shards import cut_places, make_shards, sparse_activations


def _by_definition(activations: np.ndarray, embeddings: np.ndarray) -> float:
    activations = activations.astype(np.float64) / max(float(activations.max()), 1e-12)
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    above, below = 0.0, 0.0
    for i in range(len(activations)):
        for j in range(i + 1, len(activations)):
            above += activations[i] * activations[j] * float(unit[i] @ unit[j])
            below += activations[i] * activations[j]
    return above / below if below else float("nan")


def _coded(dense: np.ndarray, embeddings: np.ndarray, cuts: list[int]) -> list[CodedEmbeddings]:
    return [
        CodedEmbeddings(
            offsets=shard.offsets,
            neuron_ids=shard.neuron_ids,
            values=shard.values,
            embeddings=embeddings[shard.start : shard.start + len(shard.norms)],
        )
        for shard in make_shards(dense, cuts)
    ]


@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize("block_numbers", [8, 1 << 24])
def test_equals_the_definition(block_numbers: int, data: st.DataObject) -> None:
    dense = np.where((drawn := data.draw(sparse_activations(max_rows=20))) > 0, drawn + np.float16(0.1), 0)
    dense = dense.astype(np.float16)
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    embeddings = (generator.normal(size=(len(dense), 4)) + 1).astype(np.float16)
    embeddings[generator.random(len(dense)) < 0.1] = 0
    shards = _coded(dense, embeddings, data.draw(cut_places(len(dense))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_NUMBERS", block_numbers)
        patch.setattr(module, "_CHUNK_ROWS", 7)
        scores = monosemanticity(shards, neuron_count=dense.shape[1], width=4)
    for neuron_id, score in enumerate(scores):
        due = _by_definition(dense[:, neuron_id], embeddings.astype(np.float64))
        if np.isnan(due):
            assert np.isnan(score)
        else:
            # Where one activation outweighs all others, both sums are small differences of large numbers.
            assert score == pytest.approx(due, abs=2e-3)


def test_one_concept_scores_high_and_many_score_low() -> None:
    generator = np.random.default_rng(0)
    concepts = np.eye(8)[np.arange(400) % 8] + 0.01 * generator.normal(size=(400, 8))
    dense = np.zeros((400, 3), dtype=np.float16)
    dense[::8, 0] = generator.gamma(2.0, 1.0, 50).astype(np.float16)
    dense[:, 1] = 1.0
    dense[5, 2] = 1.0
    scores = monosemanticity(_coded(dense, concepts.astype(np.float16), [100]), neuron_count=3, width=8)
    assert scores[0] > 0.98
    assert scores[1] == pytest.approx(1 / 8, abs=0.02)
    assert np.isnan(scores[2])
