"""Images by a vector: brute force over the stored vectors, or the share of it that was measured."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest

from index.effort import Approximation, Effort, efforts, measured
from index.faiss_device import on_device
from index.image_vectors import ImageVectors, stored_vectors
from index.plan import Quantiser
from index.vector_index import VectorLayout
from index.vector_search import VectorSearch, write_vector_search
from phosphene.errors import ArtefactDamaged, SettingError
from tests.index.fake_gpu import GpuCopy, give_gpu
from tests.index.random_codes import NEURON_COUNT, random_codes
from tests.index.shard_folders import write_shards

ROWS, WIDTH = 2000, 24
FLAT = VectorLayout(list_count=0, quantiser=Quantiser.FAST_SCAN)
READABLE = np.arange(ROWS) % 50 != 3


def clusters() -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, WIDTH))
    return (centres[np.arange(ROWS) % 40] + 0.5 * generator.normal(size=(ROWS, WIDTH))).astype(np.float32)


VECTORS = stored_vectors(clusters(), READABLE)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> ImageVectors:
    codes = random_codes(8) * (ROWS // 8)
    folder = tmp_path_factory.mktemp("vectors")
    return ImageVectors(write_shards(folder, codes, neuron_count=NEURON_COUNT, size=700, embeddings=VECTORS))


def brute_force(query: np.ndarray, count: int, excluded: set[int]) -> list[tuple[int, float]]:
    cosines = VECTORS.astype(np.float32) @ (query / np.linalg.norm(query)).astype(np.float32)
    rows = [row for row in np.lexsort((np.arange(ROWS), -cosines)) if READABLE[row] and row not in excluded]
    return [(int(row), float(cosines[row])) for row in rows[:count]]


def test_stored_vectors_have_norm_one_but_for_unreadable_rows() -> None:
    norms = np.linalg.norm(VECTORS.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, READABLE, atol=1e-3)
    # Beyond float16 before they are brought to norm 1.
    assert stored_vectors(np.array([[3e5, 4e5]], np.float32), np.ones(1, bool)).tolist() == [
        [np.float16(0.6), np.float16(0.8)]
    ]


@pytest.mark.parametrize("excluded", [set(), {7}, set(range(0, ROWS, 40)) | set(range(1, 900))])
def test_flat_vectors_answer_as_brute_force_does(vectors: ImageVectors, tmp_path: Path, excluded: set[int]) -> None:
    file = tmp_path / "flat.faiss"
    assert write_vector_search(file, vectors, READABLE, FLAT) is None
    search = VectorSearch(file, vectors, approximation=None)
    assert search.recall == 1.0
    shown = READABLE & ~np.isin(np.arange(ROWS), sorted(excluded - {7}))
    for query in (VECTORS[0].astype(np.float32), np.arange(WIDTH, dtype=np.float32) - 10):
        found = search.nearest(query, 20, shown=shown, exclude_rows=[7] if 7 in excluded else [])
        due = brute_force(query, 20, excluded)
        assert [row for row, _ in found] == [row for row, _ in due]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in due], atol=1e-6)


def test_every_other_row_is_found_in_the_end(vectors: ImageVectors, tmp_path: Path) -> None:
    write_vector_search(tmp_path / "flat.faiss", vectors, READABLE, FLAT)
    search = VectorSearch(tmp_path / "flat.faiss", vectors, approximation=None)
    assert len(search.nearest(search.vector(0), ROWS, shown=READABLE)) == int(READABLE.sum())
    assert search.nearest(np.zeros(WIDTH, dtype=np.float32), 5, shown=READABLE) == []


@pytest.mark.parametrize("quantiser", list(Quantiser))
def test_lists_find_the_share_that_was_measured(vectors: ImageVectors, tmp_path: Path, quantiser: Quantiser) -> None:
    faiss.omp_set_num_threads(1)
    file = tmp_path / "lists.faiss"
    found = write_vector_search(file, vectors, READABLE, VectorLayout(list_count=45, quantiser=quantiser))
    assert found is not None
    assert found.recall >= 0.95
    search = VectorSearch(file, vectors, approximation=found)
    hits = 0
    for row in range(11, ROWS, 40):
        due = {other for other, _ in brute_force(VECTORS[row].astype(np.float32), 10, {row})}
        answer = search.nearest(search.vector(row), 10, shown=READABLE, exclude_rows=[row])
        hits += len(due & {other for other, _ in answer})
    assert hits / (10 * len(range(11, ROWS, 40))) == pytest.approx(search.recall, abs=0.05)


@pytest.mark.parametrize("quantiser", list(Quantiser))
def test_lists_that_hold_hidden_rows_alone_are_not_the_last(
    vectors: ImageVectors, tmp_path: Path, quantiser: Quantiser
) -> None:
    file, query = tmp_path / "lists.faiss", VECTORS[0].astype(np.float32)
    write_vector_search(file, vectors, READABLE, VectorLayout(list_count=45, quantiser=quantiser))
    search = VectorSearch(file, vectors, approximation=Approximation(probe_count=1, candidate_count=16, recall=0.5))
    hidden = {row for row, _ in brute_force(query, 1800, set())}
    shown = READABLE & ~np.isin(np.arange(ROWS), sorted(hidden))
    found = search.nearest(query, 20, shown=shown)
    assert len({row for row, _ in found} - hidden) == 20
    assert search.nearest(query, ROWS, shown=shown) == search.nearest(query, int(shown.sum()), shown=shown)
    assert search.nearest(query, 20, shown=np.zeros(ROWS, dtype=bool)) == []


def test_an_index_of_other_vectors_is_refused(vectors: ImageVectors, tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexFlatIP(7), str(tmp_path / "other.faiss"))
    with pytest.raises(ArtefactDamaged, match="holds 0 vectors of 7 numbers; due are 2000 of 24"):
        VectorSearch(tmp_path / "other.faiss", vectors, approximation=None)


def test_a_device_that_is_not_here_is_refused_in_words() -> None:
    index = faiss.IndexFlatIP(4)
    assert on_device(index, "cpu") is index
    with pytest.raises(SettingError, match="not on 'tpu'"):
        on_device(index, "tpu")
    with pytest.raises(SettingError, match="it sees .* GPUs; install requirements/gpu.txt"):
        on_device(index, "cuda:99")


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[GpuCopy]:
    """What was put on the one GPU of this machine."""
    return give_gpu(monkeypatch)


def test_threads_take_turns_on_a_gpu(vectors: ImageVectors, tmp_path: Path, copies: list[GpuCopy]) -> None:
    write_vector_search(tmp_path / "flat.faiss", vectors, READABLE, FLAT)
    search = VectorSearch(tmp_path / "flat.faiss", vectors, approximation=None, device="cuda")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: search.nearest(search.vector(row), 5, shown=READABLE), range(40, 140)))
    assert len(copies) == 1
    for row, answer in zip(range(40, 140), found, strict=True):
        due = brute_force(VECTORS[row].astype(np.float32), 5, set()) if READABLE[row] else []
        assert [other for other, _ in answer] == [other for other, _ in due]


def test_a_gpu_is_asked_for_no_more_than_it_finds(tmp_path: Path, copies: list[GpuCopy]) -> None:
    count = 3000
    rows = np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)
    shards = write_shards(
        tmp_path,
        random_codes(8) * (count // 8),
        neuron_count=NEURON_COUNT,
        size=count,
        embeddings=stored_vectors(rows, np.ones(count, bool)),
    )
    vectors = ImageVectors(shards)
    write_vector_search(tmp_path / "flat.faiss", vectors, np.ones(count, bool), FLAT)
    search = VectorSearch(tmp_path / "flat.faiss", vectors, approximation=None, device="cuda")
    assert len(search.nearest(rows[0], 500, shown=np.ones(count, bool))) == 500
    assert search.nearest(rows[0], 500, shown=np.zeros(count, bool)) == []
    assert max(copies[0].asked) == 2048
    asked_count = len(copies[0].asked)
    deepest = Effort(probe_count=0, candidate_count=2049)
    assert len(search.nearest(rows[0], 10, shown=np.ones(count, bool), effort=deepest)) == 10
    assert len(copies[0].asked) == asked_count  # From the disk: so many candidates find the share that was measured.


def test_a_gpu_that_hidden_rows_crowd_out_answers_as_brute_force_does(
    vectors: ImageVectors, tmp_path: Path, copies: list[GpuCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.vector_index.GPU_PROPOSAL_LIMIT", 160)
    write_vector_search(tmp_path / "flat.faiss", vectors, READABLE, FLAT)
    search = VectorSearch(tmp_path / "flat.faiss", vectors, approximation=None, device="cuda")
    query = VECTORS[0].astype(np.float32)
    hidden = {row for row, _ in brute_force(query, 1500, set())}
    shown = READABLE & ~np.isin(np.arange(ROWS), sorted(hidden))
    found = search.nearest(query, 20, shown=shown)
    assert [row for row, _ in found] == [row for row, _ in brute_force(query, 20, hidden)]
    found = search.nearest(query, 100, shown=READABLE)
    assert [row for row, _ in found] == [row for row, _ in brute_force(query, 100, set())]
    assert set(copies[0].asked) == {160}


def test_lists_that_no_gpu_holds_are_refused_in_words(copies: list[GpuCopy]) -> None:
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(1024), 1024, 4, 128, 8, faiss.METRIC_INNER_PRODUCT)
    with pytest.raises(
        SettingError,
        match=r"cannot hold 0 vectors of 1024 numbers in lists of 128 parts a vector on cuda \('IVFPQ.* encoded vector "
        r"128 is not supported\); search on cpu \(PHOSPHENE_INDEX_DEVICE=cpu\)",
    ):
        on_device(index, "cuda")


def test_the_least_effort_that_finds_enough_is_chosen_and_measured_on_other_rows() -> None:
    asked: list[tuple[int, list[int]]] = []

    def recall(effort: Effort, rows: np.ndarray) -> float:
        asked.append((effort.candidate_count, rows.tolist()))
        return min(1.0, effort.candidate_count / 256)

    rows = np.arange(10, 20)
    found = measured(efforts(8, 10_000), rows, recall)
    assert (found.probe_count, found.candidate_count, found.recall) == (8, 256, 1.0)
    assert asked == [(128, rows[::2].tolist()), (256, rows[::2].tolist()), (256, rows[1::2].tolist())]
    worst = measured(efforts(8, 100), rows, lambda effort, rows: 0.5)
    assert worst == Approximation(probe_count=8, candidate_count=100, recall=0.5)


def test_equal_vectors_go_by_row_however_many_there_are(tmp_path: Path) -> None:
    """More of them than are proposed at first."""
    generator = np.random.default_rng(0)
    kinds = stored_vectors(generator.normal(size=(6, WIDTH)).astype(np.float32), np.ones(6, dtype=bool))
    drawn = generator.integers(0, 6, ROWS)
    shards = write_shards(tmp_path, random_codes(8) * (ROWS // 8), neuron_count=NEURON_COUNT, embeddings=kinds[drawn])
    copies, file = ImageVectors(shards), tmp_path / "flat.faiss"
    shown = np.arange(ROWS) % 7 != 2
    assert write_vector_search(file, copies, shown, FLAT) is None
    search = VectorSearch(file, copies, approximation=None)
    for kind in range(6):
        equal = np.flatnonzero((drawn == kind) & shown)
        for count in (1, 10, 100):
            found = search.nearest(kinds[kind].astype(np.float32), count, shown=shown)
            assert [row for row, _ in found] == equal[:count].tolist()
