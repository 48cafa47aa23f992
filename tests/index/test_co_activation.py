"""Neighbours against a plain dense reference; clusters of dense neurons against their definition."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import co_activation as module
from index.co_activation import CoActivation, co_activation_neighbours
from index.dense_clusters import dense_cluster, dense_density, dense_neurons, left_out_of_similarity
from index.neighbours import Neighbours, write_neighbours
from phosphene.errors import ArtefactDamaged
from tests.index.shards import cut_places, make_shards, sparse_activations


def _reference(
    dense: np.ndarray, neuron_id: int, image_count: int, least: int, limit: int
) -> list[tuple[int, float, int]]:
    fires = dense > 0
    found = []
    for other in range(dense.shape[1]):
        together = int((fires[:, neuron_id] & fires[:, other]).sum())
        if other == neuron_id or together < least:
            continue
        share, own, its = (n / image_count for n in (together, fires[:, neuron_id].sum(), fires[:, other].sum()))
        found.append((other, np.log(share / (own * its)) / -np.log(share) if share < 1 else 1.0, together))
    return sorted((row for row in found if row[1] > 1e-6), key=lambda row: (-round(row[1], 6), row[0]))[:limit]


@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize(("block_numbers", "chunk_pairs"), [(1, 5), (1 << 22, 1 << 20)])
def test_neighbours_equal_the_reference(block_numbers: int, chunk_pairs: int, data: st.DataObject) -> None:
    dense = data.draw(sparse_activations())
    image_count = len(dense) + data.draw(st.integers(0, 3))
    least, limit = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 10))
    shards = data.draw(st.permutations(make_shards(dense, data.draw(cut_places(len(dense))))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_NUMBERS", block_numbers)
        patch.setattr(module, "_CHUNK_PAIRS", chunk_pairs)
        found = co_activation_neighbours(
            shards,
            neuron_count=dense.shape[1],
            image_count=image_count,
            neighbour_count=limit,
            least_count=least,
        )
    for neuron_id in range(dense.shape[1]):
        due = _reference(dense, neuron_id, image_count, least, limit)
        known = int((found.npmi[neuron_id] > 1e-6).sum())
        assert found.ids[neuron_id, :known].tolist() == [row[0] for row in due]
        assert found.npmi[neuron_id, :known].tolist() == pytest.approx([row[1] for row in due], abs=1e-5)
        assert found.counts[neuron_id, :known].tolist() == [row[2] for row in due]
    assert bool((found.ids[found.counts == 0] == -1).all())


def test_neighbours_come_back_from_disk(tmp_path: Path) -> None:
    made = CoActivation(
        ids=np.array([[2, 1], [0, -1], [-1, -1]], dtype=np.int32),
        npmi=np.array([[0.5, 0.25], [0.25, 0], [0, 0]], dtype=np.float32),
        counts=np.array([[7, 9], [9, 0], [0, 0]]),
    )
    write_neighbours(tmp_path, made)
    neighbours = Neighbours(tmp_path)
    assert neighbours.neuron_count == 3
    assert neighbours.of(0) == [(2, 0.5, 7), (1, 0.25, 9)]
    assert neighbours.of(1) == [(0, 0.25, 9)]
    assert neighbours.of(2) == []
    np.save(tmp_path / "neighbours" / "counts.npy", made.counts[:2])
    with pytest.raises(ArtefactDamaged, match=r"counts.npy \(2, 2\)"):
        Neighbours(tmp_path)


def test_dense_is_above_a_tenth_and_above_eight_times_even() -> None:
    assert dense_density(mean_l0=32.0, neuron_count=16384) == 0.1
    assert dense_density(mean_l0=32.0, neuron_count=1024) == 0.25
    density = np.array([0.1, 0.11, 0.0, 0.9])
    assert dense_neurons(density, mean_l0=0.01).tolist() == [False, True, False, True]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 1.0]), min_size=1), st.floats(0.01, 4))
def test_similarity_keeps_a_neuron_that_fires(listed: list[float], mean_l0: float) -> None:
    density = np.array(listed)
    dense = dense_neurons(density, mean_l0=mean_l0)
    left_out = left_out_of_similarity(density, dense)
    assert not bool((left_out & ~dense).any())
    assert int((dense & ~left_out).sum()) <= 1
    if bool((density > 0).any()):
        assert bool((~left_out & (density > 0)).any())


def test_the_cluster_is_who_fires_mostly_with_its_members() -> None:
    # 0, 1, 2 fire together; 3 is dense but fires with 4 and 5, which are not; 6 leans on 3 alone.
    dense = np.array([True, True, True, True, False, False, True])
    ids = np.array([[1, 2], [0, 2], [0, 4], [4, 0], [3, 0], [3, -1], [3, -1]], dtype=np.int32)
    npmi = np.array([[0.5, 0.5], [0.4, 0.4], [0.3, 0.2], [0.4, 0.2], [0.4, 0.3], [0.4, 0], [0.9, 0]], dtype=np.float32)
    assert dense_cluster(dense, ids, npmi).tolist() == [True, True, True, False, False, False, False]
    assert not dense_cluster(dense, np.full_like(ids, -1), np.zeros_like(npmi)).any()


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_the_cluster_supports_itself_and_is_the_largest_that_does(seed: int, neuron_count: int) -> None:
    generator = np.random.default_rng(seed)
    dense = generator.random(neuron_count) < 0.6
    ids = generator.integers(-1, neuron_count, (neuron_count, 4)).astype(np.int32)
    npmi = np.where(ids >= 0, generator.random(ids.shape), 0).astype(np.float32)
    cluster = dense_cluster(dense, ids, npmi)

    def supports_itself(members: np.ndarray) -> bool:
        return all(
            sum(w for j, w in zip(ids[i], npmi[i].astype(float), strict=True) if j >= 0 and members[j])
            > npmi[i].astype(float).sum() / 2
            for i in np.flatnonzero(members)
        )

    assert supports_itself(cluster)
    assert not bool((cluster & ~dense).any())
    for _ in range(20):
        other = dense & (generator.random(neuron_count) < 0.7)
        if supports_itself(other):
            assert not bool((other & ~cluster).any())
