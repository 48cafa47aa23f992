"""The parts of `make bench-index`: the codes, the contestants that need no peer, the figures."""

import json

import numpy as np
import pytest

from benchmarks import index as bench
from benchmarks.environments import pins_of
from benchmarks.figures import musts, not_measured
from benchmarks.index_load.contestant import Task, unit_rows
from benchmarks.index_load.directions import make_search
from benchmarks.index_load.figures import FIGURES, LARGE, SMALL
from benchmarks.index_load.ours import Ours
from benchmarks.index_load.ours_sketch import OurSketch
from benchmarks.index_load.peers import PEERS, PINS
from benchmarks.index_load.photos import PhotosMissing, cut_queries, photo_recipe
from benchmarks.index_load.processes import ContestantFailed, Running
from benchmarks.index_load.streamed import dense_tops, our_tops
from benchmarks.index_load.synthetic import Recipe, dense_neurons, load_rows, make_rows, write_rows
from benchmarks.samples import Samples

RECIPE = Recipe(image_count=3_000, query_count=20, neuron_count=1_024, class_count=40)


@pytest.fixture(scope="module")
def rows():
    return make_rows(RECIPE)


def test_rows_are_codes_of_the_asked_density(rows):
    images, queries = rows
    assert (images.row_count, queries.row_count) == (3_000, 20)
    counts = np.diff(images.offsets)
    assert counts.max() <= 32
    assert counts.mean() > 28
    for row in range(50):
        part = images.part(row, row + 1)
        assert len(np.unique(part.neuron_ids)) == len(part.neuron_ids)
        assert (np.diff(part.values) <= 0).all()
        assert part.values.min() > 0


def test_frequencies_fall_like_zipf_s(rows):
    often = np.sort(np.bincount(rows[0].neuron_ids, minlength=RECIPE.neuron_count))[::-1]
    assert often[0] > 0.9 * 3_000
    # A tenfold rank is fired on about a tenth as often, away from both ends.
    assert 4 < often[20:40].mean() / often[200:400].mean() < 25


def test_images_of_a_class_share_most_of_their_neurons(rows):
    images, _ = rows
    dense = np.zeros((500, RECIPE.neuron_count), dtype=int)
    for row in range(500):
        dense[row, images.part(row, row + 1).neuron_ids] = 1
    shared = dense @ dense.T
    np.fill_diagonal(shared, 0)
    assert np.median(shared.max(axis=1)) > 20


def test_the_seed_decides_every_byte(rows):
    again, _ = make_rows(RECIPE)
    assert (again.neuron_ids == rows[0].neuron_ids).all()
    assert (again.values == rows[0].values).all()


def test_rows_without_dense_neurons_keep_the_others_in_order(rows):
    images, _ = rows
    is_dense = dense_neurons(images, RECIPE)
    assert 0 < is_dense.sum() < 400
    kept = images.without(is_dense)
    for row in (0, 1, 2_999):
        own = images.part(row, row + 1).neuron_ids
        assert kept.part(row, row + 1).neuron_ids.tolist() == own[~is_dense[own]].tolist()


def test_unit_rows_have_norm_one_and_rising_neurons(rows):
    unit = unit_rows(rows[0], dense_neurons(rows[0], RECIPE))
    for row in (0, 17, 2_999):
        part = unit.part(row, row + 1)
        assert (np.diff(part.neuron_ids) > 0).all()
        assert float(np.linalg.norm(part.values)) == pytest.approx(1, abs=1e-6)


def test_ours_answers_as_brute_force_does(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    folder = write_rows(RECIPE, tmp_path)
    images, queries = load_rows(folder, "images"), load_rows(folder, "queries")
    is_dense = dense_neurons(images, RECIPE)
    ours = Ours(Task(folder=str(folder), scratch="", recipe={}), images, is_dense)
    asked = [(part.neuron_ids, part.values.astype(np.float32)) for part in (queries.part(n, n + 1) for n in range(5))]
    found = [ours.rows(ours.ask(query)) for query in ours.prepare({}, asked)]
    assert bench.equal_to_brute_force(RECIPE, found) == 1.0
    assert bench.equal_to_brute_force(RECIPE, [rows[::-1] for rows in found]) == 0.0
    assert ours.stored_bytes < 400 * 3_000


def test_both_streams_find_the_same_strongest(rows):
    images = rows[0].part(0, 1_500)
    tops = our_tops(images, RECIPE.neuron_count)
    values, _ = dense_tops(images, RECIPE.neuron_count)
    for neuron in range(0, RECIPE.neuron_count, 37):
        _, ours = tops.of(neuron)
        theirs = values[neuron].numpy()
        assert ours.astype(np.float32).tolist() == theirs[theirs > 0].tolist()


def test_both_searches_of_directions_find_the_same():
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(200, 16)).astype(np.float32)
    for who in ("ours", "faiss"):
        assert make_search(who, directions)(directions[3])[0] in np.argsort(-(directions @ directions[3]))[:1]


def test_photos_are_cut_into_images_and_queries_without_empty_codes(rows):
    images = rows[0]
    lengths = np.diff(images.offsets).copy()
    lengths[[3, 16]] = 0
    kept = np.repeat(lengths > 0, np.diff(images.offsets))
    some = type(images)(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        neuron_ids=images.neuron_ids[kept],
        values=images.values[kept],
    )
    found, queries = cut_queries(some)
    assert found.row_count + queries.row_count == 2_998
    # The first is a query; the sixteenth after it is row 18, because two codes are empty.
    for place, row in ((0, 0), (1, 18)):
        assert (queries.part(place, place + 1).values == images.part(row, row + 1).values).all()
    assert (found.part(0, 1).neuron_ids == images.part(1, 2).neuron_ids).all()


def test_photos_that_are_not_there_are_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PhotosMissing, match="not there: ../shared/photos"):
        photo_recipe(tmp_path, may_make=True)


def test_the_sketch_finds_what_it_says(rows, tmp_path):
    folder = write_rows(RECIPE, tmp_path)
    images, queries = load_rows(folder, "images"), load_rows(folder, "queries")
    is_dense = dense_neurons(images, RECIPE)
    exact = Ours(Task(folder=str(folder), scratch="", recipe={}), images, is_dense)
    sketch = OurSketch(Task(folder=str(folder), scratch=str(tmp_path), recipe={}), images, is_dense)
    asked = [(part.neuron_ids, part.values.astype(np.float32)) for part in (queries.part(n, n + 1) for n in range(20))]
    found, due = ([each.rows(each.ask(query)) for query in asked] for each in (sketch, exact))
    assert bench.recall(found, due) == pytest.approx(sketch.notes["stated_recall"], abs=0.1)
    assert sketch.notes["stated_recall"] > 0.9


def test_recall_is_the_share_that_was_found():
    assert bench.recall([[1, 2], [3]], [[2, 5], [3, 4]]) == 0.5


def test_a_contestant_that_ends_is_told_of(tmp_path):
    with pytest.raises(ContestantFailed, match="No module named"):
        Running("nobody", "benchmarks.index_load.nobody", bench.Path(bench.sys.executable), RECIPE, tmp_path)


def test_figures_follow_from_samples_and_the_rest_is_named():
    samples = Samples()
    assert not_measured(FIGURES, samples) == [figure.name for figure in FIGURES]
    samples.add(f"{SMALL}.ours.cpu_s", 1e-4)
    samples.add(f"{SMALL}.scipy.cpu_s", 2e-3)
    samples.add(f"{LARGE}.ours.stored_bytes", 280e6)
    found = musts(FIGURES, samples)
    assert found["similar images, 200 k, against scipy, CPU-seconds (aim 25)"].value == pytest.approx(20)
    assert found["codes + postings, bytes per image (aim 200)"].value == 280
    assert len(found) == 2
    assert all(must.holds for must in found.values())


def test_one_race_with_a_wrong_answer_is_enough_to_miss_the_bar():
    samples = Samples()
    for equal in (1.0, 0.9, 1.0):
        samples.add("equal_to_brute_force", equal)
    (must,) = musts(FIGURES, samples).values()
    assert (must.value, must.holds) == (0.9, False)


def test_faiss_is_compared_as_everybody_else_is():
    samples = Samples()
    samples.add(f"{LARGE}.sketch.cpu_s", 1e-4)
    samples.add(f"{LARGE}.scipy.cpu_s", 5e-3)
    assert musts(FIGURES, samples)["FAISS tier, 1000 k, against scipy, CPU-seconds (aim 60)"].value == pytest.approx(50)


def test_every_peer_has_exact_versions():
    for name in PEERS:
        pins = pins_of(name, PINS.read_text())
        assert pins
        assert all(pin.count("==") == 1 for pin in pins)


def test_recipes_go_as_json_to_contestants():
    task = Task(folder="a", scratch="b", recipe={"image_count": 3})
    assert Task(**json.loads(task.to_json())) == task
