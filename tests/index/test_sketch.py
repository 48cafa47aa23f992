"""The sketch: unbiased, reproducible, and good enough to find what brute force finds."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from index.effort import Approximation
from index.plan import Quantiser, plan_shards
from index.shards import Shards, open_shards
from index.similar import SimilarImages, measure_sketch
from index.sketch import SketchSource, sketch_signs, sketches, write_sketch
from index.values import CodeMetric
from index.vector_index import VectorLayout, build_vectors, plan_layout
from phosphene.codes import ImageCode
from tests.index.fake_gpu import give_gpu
from tests.index.random_codes import NEURON_COUNT, dense, random_codes
from tests.index.shard_folders import write_shards

CODES = random_codes(3000)


NONE = np.zeros(NEURON_COUNT, dtype=bool)
FLAT = VectorLayout(list_count=0, quantiser=Quantiser.FAST_SCAN)
LISTS = VectorLayout(list_count=55, quantiser=Quantiser.FAST_SCAN)
ALL = Approximation(probe_count=55, candidate_count=512, recall=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sketch")
    shards = write_shards(folder, CODES, neuron_count=NEURON_COUNT, size=1024)
    write_sketch(folder, shards, left_out=NONE, seed=0, layout=FLAT)
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path) -> Shards:
    return open_shards(folder, plan_shards(len(CODES), 1024))


def _similar(
    folder: Path, shards: Shards, *, approximation: Approximation | None = ALL, left_out: tuple[int, ...] = ()
) -> SimilarImages:
    return SimilarImages(folder, shards, left_out_neuron_ids=left_out, sketch_seed=0, approximation=approximation)


def _cosines(row: int) -> np.ndarray:
    matrix = dense(CODES)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix @ matrix[row]


def test_signs_are_fixed_for_ever() -> None:
    signs = sketch_signs(4, seed=0)
    assert set(np.unique(signs)) == {-1, 1}
    np.testing.assert_array_equal(signs, sketch_signs(1000, seed=0)[:4])
    # SplitMix64 by hand for neuron 0, word 0: its first bits, least significant first.
    mask = (1 << 64) - 1

    def splitmix(counter: int) -> int:
        mixed = (counter + 1) * 0x9E3779B97F4A7C15 & mask
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
        return mixed ^ mixed >> 31

    for neuron_id in (0, 3):
        for word in range(4):
            hashed = splitmix(neuron_id * 4 + word + splitmix(0) & mask)
            bits = [2 * (hashed >> bit & 1) - 1 for bit in range(64)]
            assert signs[neuron_id, 64 * word : 64 * word + 64].tolist() == bits
    assert (sketch_signs(4, seed=1) != signs).any()


def test_inner_products_of_sketches_estimate_cosines(shards: Shards) -> None:
    signs = sketch_signs(NEURON_COUNT, 0)
    parts = [shard.codes for shard in shards]
    found = np.concatenate([sketches(np.array(part.offsets), part.neuron_ids, part.values, signs) for part in parts])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    errors = found @ found[5] - _cosines(5)
    assert abs(errors.mean()) < 0.02
    assert errors.std() < 1.5 / 16


def test_an_empty_code_has_the_zero_sketch() -> None:
    signs = sketch_signs(5, 0)
    found = sketches(np.array([0, 0, 1, 1]), np.array([3], dtype=np.int32), np.array([2.0], dtype=np.float32), signs)
    np.testing.assert_array_equal(found[[0, 2]], 0)
    np.testing.assert_allclose(found[1], signs[3] / 16)


@pytest.mark.parametrize("approximation", [None, ALL])
def test_similar_images_equal_brute_force(folder: Path, shards: Shards, approximation: Approximation | None) -> None:
    similar = _similar(folder, shards, approximation=approximation)
    for row in (0, 17, 1024, 2999):
        answer = similar.nearest(shards.code(row), 10, exclude_rows=[row])
        due = _cosines(row)
        due[row] = -1
        np.testing.assert_allclose([image.similarity for image in answer], np.sort(due)[::-1][:10], atol=1e-6)
        for image in answer:
            shared = set(CODES[row].neuron_ids.tolist()) & set(CODES[image.row].neuron_ids.tolist())
            assert set(image.shared_neuron_ids) == shared
            assert image.recall == (1.0 if approximation is None else 0.9)
    own = similar.nearest(shards.code(17), 1)[0]
    assert (own.row, own.similarity) == (17, pytest.approx(1.0))


@pytest.mark.parametrize("approximation", [None, ALL])
def test_dense_neurons_do_not_count(tmp_path: Path, approximation: Approximation | None) -> None:
    dense_ids = np.argsort(-(dense(CODES) > 0).sum(axis=0))[:40]
    left_out = NONE.copy()
    left_out[dense_ids] = True
    shards = write_shards(tmp_path, CODES[:800], neuron_count=NEURON_COUNT, size=300)
    write_sketch(tmp_path, shards, left_out=left_out, seed=0, layout=FLAT)
    similar = _similar(tmp_path, shards, approximation=approximation, left_out=tuple(dense_ids.tolist()))
    matrix = dense(CODES[:800])
    matrix[:, dense_ids] = 0
    lengths = np.linalg.norm(matrix, axis=1)
    for row in (3, 500):
        due = matrix @ matrix[row] / np.where(lengths > 0, lengths, 1) / lengths[row]
        due[row] = -1
        answer = similar.nearest(shards.code(row), 10, exclude_rows=[row])
        np.testing.assert_allclose([image.similarity for image in answer], np.sort(due)[::-1][:10], atol=1e-6)
        assert not {neuron for image in answer for neuron in image.shared_neuron_ids} & set(dense_ids.tolist())


def test_little_effort_is_enough_for_flat_sketches(folder: Path, shards: Shards) -> None:
    found = measure_sketch(folder, shards, left_out=NONE, seed=0)
    assert found.candidate_count <= 512
    assert found.recall >= 0.97


@pytest.mark.parametrize("quantiser", list(Quantiser))
def test_inverted_lists_find_what_they_say_and_are_reproducible(
    shards: Shards, tmp_path: Path, quantiser: Quantiser
) -> None:
    faiss.omp_set_num_threads(1)
    layout = plan_layout(len(CODES), ivf_from_images=3000, quantiser=quantiser)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_sketch(tmp_path / name, shards, left_out=NONE, seed=0, layout=layout)
    assert (tmp_path / "one" / "sketch.faiss").read_bytes() == (tmp_path / "two" / "sketch.faiss").read_bytes()
    found = measure_sketch(tmp_path / "one", shards, left_out=NONE, seed=0)
    assert 1 <= found.probe_count <= layout.list_count
    assert found.recall >= 0.95
    # Over rows that the measurement has not seen.
    exact, lists = (_similar(tmp_path / "one", shards, approximation=each) for each in (None, found))
    hits = 0
    for row in range(5, 3000, 100):
        due = exact.nearest(shards.code(row), 10, exclude_rows=[row])[-1].similarity
        hits += sum(image.similarity >= due for image in lists.nearest(shards.code(row), 10, exclude_rows=[row]))
    assert hits / 300 == pytest.approx(found.recall, abs=0.05)


@pytest.mark.parametrize("quantiser", list(Quantiser))
def test_shards_lists_joined_in_order_are_those_of_all_rows_at_once(tmp_path: Path, quantiser: Quantiser) -> None:
    faiss.omp_set_num_threads(1)
    layout = VectorLayout(list_count=20, quantiser=quantiser)
    built = []
    for size in (3000, 700):
        cut = write_shards(tmp_path / str(size), CODES, neuron_count=NEURON_COUNT, size=size)
        index = build_vectors(SketchSource(cut, left_out=NONE, seed=0), layout)
        assert index.ntotal == len(CODES)
        built.append(faiss.serialize_index(index))
    np.testing.assert_array_equal(*built)


def test_other_metrics_and_chosen_neurons_are_exact_even_beside_sketches(folder: Path, shards: Shards) -> None:
    similar, matrix = _similar(folder, shards), dense(CODES)
    chosen = CODES[9].neuron_ids[:4].tolist()
    products = (matrix @ matrix[9]).tolist()
    found = similar.nearest(shards.code(9), 8, exclude_rows=[9], metric=CodeMetric.INNER_PRODUCT)
    order = sorted((row for row in range(len(CODES)) if row != 9), key=lambda row: -products[row])
    np.testing.assert_allclose([image.similarity for image in found], [products[row] for row in order[:8]], rtol=1e-6)
    parts = matrix[:, chosen] @ matrix[9, chosen]
    cosines = parts / np.linalg.norm(matrix, axis=1) / np.linalg.norm(matrix[9])
    cosines[9] = -1
    found += similar.nearest(shards.code(9), 8, exclude_rows=[9], neuron_ids=chosen)
    np.testing.assert_allclose([image.similarity for image in found[8:]], np.sort(cosines)[::-1][:8], rtol=1e-6)
    assert all(set(image.shared_neuron_ids) <= set(chosen) for image in found[8:])
    assert {image.recall for image in found} == {1.0}


@pytest.mark.parametrize("approximation", [None, ALL])
def test_a_code_that_shares_no_neuron_is_not_similar(tmp_path: Path, approximation: Approximation | None) -> None:
    def single(neuron_id: int) -> ImageCode:
        return ImageCode(neuron_ids=np.array([neuron_id], np.int32), values=np.ones(1, np.float32))

    empty = ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))
    shards = write_shards(tmp_path, [single(0), single(1), empty], neuron_count=3, size=2)
    write_sketch(tmp_path, shards, left_out=np.zeros(3, dtype=bool), seed=0, layout=FLAT)
    similar = _similar(tmp_path, shards, approximation=approximation)
    assert [image.row for image in similar.nearest(single(1), 5)] == [1]
    assert similar.nearest(single(2), 5) == []
    assert similar.nearest(empty, 5) == []


@pytest.mark.parametrize("quantiser", list(Quantiser))
def test_lists_that_hold_hidden_rows_alone_are_not_the_last(
    shards: Shards, tmp_path: Path, quantiser: Quantiser
) -> None:
    write_sketch(tmp_path, shards, left_out=NONE, seed=0, layout=VectorLayout(list_count=55, quantiser=quantiser))
    similar = _similar(tmp_path, shards, approximation=Approximation(probe_count=1, candidate_count=16, recall=0.5))
    cosines = _cosines(5)
    nearest = np.argsort(-cosines)[: int((cosines > 0).sum())]
    found = similar.nearest(CODES[5], 3, exclude_rows=nearest[:-60].tolist())
    assert len({image.row for image in found} & set(nearest[-60:].tolist())) == 3


def test_a_search_on_a_gpu_goes_on_from_the_disk_where_hidden_rows_crowd_it_out(
    folder: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = give_gpu(monkeypatch)
    monkeypatch.setattr("index.vector_index.GPU_PROPOSAL_LIMIT", 512)
    similar = SimilarImages(folder, shards, left_out_neuron_ids=(), sketch_seed=0, approximation=ALL, device="cuda")
    row = 5
    cosines = _cosines(row)
    nearest = np.argsort(-cosines)[: int((cosines > 0).sum())]
    found = similar.nearest(CODES[row], 3, exclude_rows=nearest[:-3].tolist())
    assert {image.row for image in found} == set(nearest[-3:].tolist())
    assert copies[0].asked == [512]
