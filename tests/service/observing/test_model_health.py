"""Figures over recent codes: exact against plain references, and quiet where nothing drifts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.codes import ImageCode
from service.observing.model_health import IndexReference, ModelHealth, drift_floor, index_reference
from tests.fakes import CORPUS, FakeReader

NEURON_COUNT = 8
CODES = st.lists(
    st.tuples(
        st.sets(st.integers(0, NEURON_COUNT - 1)),
        st.one_of(st.none(), st.floats(0, 2)),
    ),
    max_size=40,
)


def code_of(neuron_ids, value=1.0):
    ids = np.array(sorted(neuron_ids), np.int32)
    return ImageCode(neuron_ids=ids, values=np.full(len(ids), value, np.float32))


def reference(densities, image_count=1000):
    return IndexReference(densities=np.array(densities, np.float64), image_count=image_count)


def firing(random, densities, image_count):
    """The codes of images on which neurons fire independently."""
    fires = random.random((image_count, len(densities))) < densities
    return [code_of(np.flatnonzero(row)) for row in fires]


@given(CODES, st.integers(1, 12))
def test_figures_are_those_of_the_last_images(seen, window_images):
    densities = np.linspace(0.1, 0.8, NEURON_COUNT)
    health = ModelHealth(reference=reference(densities), window_images=window_images, drift_images=1)
    for ids, fvu in seen:
        health.observe(code_of(ids), fvu)
    kept = seen[-window_images:]
    fvus = [fvu for _, fvu in kept if fvu is not None]
    figures = health.figures()
    assert figures.image_count == len(kept)
    assert figures.l0_neurons == (pytest.approx(np.mean([len(ids) for ids, _ in kept])) if kept else None)
    assert figures.fvu_ratio == (pytest.approx(np.mean(fvus), abs=1e-9) if fvus else None)
    counts = np.zeros(NEURON_COUNT)
    for ids, _ in kept:
        counts[list(ids)] += 1
    if not counts.sum():
        assert figures.drift_ratio is None
        return
    distance = 0.5 * np.abs(counts / counts.sum() - densities / densities.sum()).sum()
    floor = figures.drift_floor_ratio
    assert figures.drift_ratio == pytest.approx(max((distance - floor) / (1 - floor), 0))


def test_one_extreme_image_is_forgotten_with_the_window_that_held_it():
    health = ModelHealth(reference=None, window_images=4)
    for fvu in (0.25, 1e30, 0.25, 0.25, 0.25, 0.25):
        health.observe(code_of({0}), fvu)
    assert health.figures().fvu_ratio == 0.25


def test_the_floor_is_the_expected_distance_of_equal_samples():
    """Against a simulation of an index and a window drawn from the same images."""
    random = np.random.default_rng(3)
    true_densities = random.power(0.2, 200)
    for index_images, window_images in ((500, 200), (5000, 200), (100_000, 1000)):
        distances, floors = [], []
        for _ in range(30):
            drawn = random.binomial(index_images, true_densities) / index_images
            live = random.binomial(window_images, true_densities)
            distances.append(0.5 * np.abs(live / live.sum() - drawn / drawn.sum()).sum())
            floors.append(drift_floor(reference(drawn, index_images), window_images))
        assert np.mean(floors) == pytest.approx(np.mean(distances), rel=0.05)


@pytest.mark.parametrize("window_images", [200, 500, 2000])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_images_do_not_drift_and_others_do(window_images, seed):
    random = np.random.default_rng(seed)
    densities = random.power(0.2, 400)
    drawn = random.binomial(4096, densities) / 4096
    same, other = (
        ModelHealth(reference=reference(drawn, 4096), window_images=window_images, drift_images=100) for _ in range(2)
    )
    for code in firing(random, densities, window_images):
        same.observe(code, None)
    for code in firing(random, random.permutation(densities), window_images):
        other.observe(code, None)
    assert same.figures().drift_ratio < 0.03
    assert other.figures().drift_ratio > 0.4


def test_no_neuron_in_common_is_a_drift_of_one():
    health = ModelHealth(reference=reference([1.0, 1.0, 0.0, 0.0]), drift_images=10)
    for _ in range(10):
        health.observe(code_of([2, 3]), None)
    assert health.figures().drift_ratio == 1.0


def test_drift_is_not_told_of_too_few_images_or_without_an_index():
    few = ModelHealth(reference=reference([0.5, 0.5]), drift_images=3)
    bare = ModelHealth(reference=None, drift_images=1)
    dead = ModelHealth(reference=reference([0.0, 0.0]), drift_images=1)
    for health in (few, bare, dead):
        for _ in range(2):
            health.observe(code_of([0]), 0.5)
        figures = health.figures()
        assert (figures.drift_ratio, figures.drift_floor_ratio) == (None, None)
        assert (figures.l0_neurons, figures.fvu_ratio) == (1.0, 0.5)
    assert bare.figures().index_l0_neurons is None
    few.observe(code_of([1]), None)
    assert few.figures().drift_ratio is not None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_counted_and_kept_out(value):
    health = ModelHealth(reference=reference([0.5, 0.5]))
    health.observe(code_of([0], value), 0.1)
    health.observe(code_of([0]), value)
    health.nonfinite()
    figures = health.figures()
    assert (figures.nonfinite_count, figures.image_count, figures.l0_neurons) == (3, 0, None)


def test_a_reference_is_what_the_index_says():
    reader = FakeReader(CORPUS)
    read = index_reference(reader)
    assert read.image_count == len(CORPUS)
    assert read.densities.tolist() == [reader.neuron(number).density for number in range(reader.neuron_count)]
