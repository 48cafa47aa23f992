"""The sketch: unbiased, reproducible, and good enough to find what brute force finds."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from index.codes_store import CodesStore, write_codes
from index.sketch import SimilarImages, exact_cosines, sketch_recall, sketch_signs, sketches, write_sketch
from phosphene.codes import ImageCode
from tests.index.random_codes import NEURON_COUNT, dense, random_codes

CODES = random_codes(3000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sketch")
    write_codes(folder, CODES)
    write_sketch(folder, CodesStore(folder), NEURON_COUNT, seed=0, ivf_from_images=100_000)
    return folder


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


def test_inner_products_of_sketches_estimate_cosines(folder: Path) -> None:
    store = CodesStore(folder)
    found = sketches(np.array(store.offsets), store.neuron_ids, store.values, sketch_signs(NEURON_COUNT, 0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    errors = found @ found[5] - _cosines(5)
    assert abs(errors.mean()) < 0.02
    assert errors.std() < 1.5 / 16


def test_an_empty_code_has_the_zero_sketch() -> None:
    signs = sketch_signs(5, 0)
    found = sketches(np.array([0, 0, 1, 1]), np.array([3], dtype=np.int32), np.array([2.0], dtype=np.float32), signs)
    np.testing.assert_array_equal(found[[0, 2]], 0)
    np.testing.assert_allclose(found[1], signs[3] / 16)


def test_exact_cosines_equal_the_dense_reference(folder: Path) -> None:
    found = exact_cosines(CODES[7], CodesStore(folder), np.arange(len(CODES)))
    np.testing.assert_allclose(found, _cosines(7), atol=1e-3)


def test_similar_images_equal_brute_force(folder: Path) -> None:
    store = CodesStore(folder)
    similar = SimilarImages(folder, store, NEURON_COUNT, seed=0)
    for row in (0, 17, 2999):
        answer = similar.nearest(store.code(row), 10, exclude_row=row)
        due = _cosines(row)
        due[row] = -1
        np.testing.assert_allclose([image.similarity for image in answer], np.sort(due)[::-1][:10], atol=1e-6)
        for image in answer:
            shared = set(CODES[row].neuron_ids.tolist()) & set(CODES[image.row].neuron_ids.tolist())
            assert set(image.shared_neuron_ids) == shared
    own = similar.nearest(store.code(17), 1)[0]
    assert (own.row, own.similarity) == (17, pytest.approx(1.0))


def test_recall_of_the_sketch_is_high(folder: Path) -> None:
    store = CodesStore(folder)
    assert sketch_recall(SimilarImages(folder, store, NEURON_COUNT, seed=0), store) >= 0.99


def test_inverted_lists_find_nearly_as_much_and_are_reproducible(folder: Path, tmp_path: Path) -> None:
    faiss.omp_set_num_threads(1)
    store = CodesStore(folder)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_sketch(tmp_path / name, store, NEURON_COUNT, seed=0, ivf_from_images=1000)
    assert (tmp_path / "one" / "sketch.faiss").read_bytes() == (tmp_path / "two" / "sketch.faiss").read_bytes()
    assert sketch_recall(SimilarImages(tmp_path / "one", store, NEURON_COUNT, seed=0), store) >= 0.8


def test_a_code_that_shares_no_neuron_is_not_similar(tmp_path: Path) -> None:
    def single(neuron_id: int) -> ImageCode:
        return ImageCode(neuron_ids=np.array([neuron_id], np.int32), values=np.ones(1, np.float32))

    empty = ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))
    write_codes(tmp_path, [single(0), single(1), empty])
    store = CodesStore(tmp_path)
    write_sketch(tmp_path, store, 3, seed=0, ivf_from_images=100)
    similar = SimilarImages(tmp_path, store, 3, seed=0)
    assert [image.row for image in similar.nearest(single(1), 5)] == [1]
    assert similar.nearest(single(2), 5) == []
    assert similar.nearest(empty, 5) == []
