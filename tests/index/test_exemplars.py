"""Exemplars: the strongest of all images, whatever recurs; and images over the whole range of activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.exemplars import ExemplarStore, write_exemplars
from index.spread import spread_ranks
from index.tops import TOP_LIMIT
from index.values import ExemplarKind
from phosphene.codes import ImageCode
from tests.index.shard_folders import image_record, write_shards


def _codes(dense: np.ndarray) -> list[ImageCode]:
    codes = []
    for row in dense:
        order = np.lexsort((np.arange(len(row)), -row))[: int((row > 0).sum())]
        codes.append(ImageCode(neuron_ids=order.astype(np.int32), values=row[order]))
    return codes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [150, 300])
def test_no_image_is_lost_to_copies_of_others(tmp_path: Path, seed: int, size: int) -> None:
    """The strongest images recur in every shard, more of them than a shard keeps."""
    generator = np.random.default_rng(seed)
    originals = 260
    activations = generator.gamma(2.0, 1.0, (originals, 3)).astype(np.float16).astype(np.float32) + np.float32(0.1)
    strength = activations[:, 0]
    chances = strength**3 / (strength**3).sum()
    which = np.concatenate([generator.permutation(originals), generator.choice(originals, 640, p=chances)])
    generator.shuffle(which)
    records = [image_record(row, sha256=f"{image:064x}") for row, image in enumerate(which)]
    shards = write_shards(tmp_path, _codes(activations[which]), neuron_count=3, size=size, records=records)
    first = np.zeros(len(which), dtype=bool)
    first[np.unique(which, return_index=True)[1]] = True
    write_exemplars(tmp_path, shards, first, top_count=TOP_LIMIT, spread_count=4)
    store = ExemplarStore(tmp_path)
    stored = activations.astype(np.float16)
    for neuron_id in range(3):
        rows = np.flatnonzero(first)
        due = rows[np.lexsort((rows, -stored[which[rows], neuron_id].astype(np.float64)))][:TOP_LIMIT]
        assert [e.row for e in store.exemplars(neuron_id, ExemplarKind.TOP, TOP_LIMIT)] == due.tolist()


activations = st.lists(
    st.tuples(st.floats(0.125, 100, width=16), st.integers(1, 30)), min_size=1, max_size=40, unique_by=lambda p: p[0]
)


@settings(deadline=None)
@given(activations, st.integers(1, 33))
def test_ranks_sample_the_range_of_activations(pairs: list[tuple[float, int]], wanted: int) -> None:
    pairs.sort(reverse=True)
    values, counts = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=np.int64)
    ranks = spread_ranks(values, counts, wanted)
    every = np.repeat(values, counts)
    # As many as there are, each once, strongest first.
    assert len(ranks) == min(wanted, len(every))
    assert (np.diff(ranks) > 0).all()
    assert ranks[0] >= 0
    assert ranks[-1] < len(every)
    if len(every) > wanted:
        shown = every[ranks]
        for level in np.linspace(values[0], values[-1], wanted):
            # The nearest there is to every level is shown.
            assert np.abs(shown - level).min() == np.abs(every - level).min()


def test_rare_strong_images_are_shown_beside_many_weak_ones() -> None:
    """Nine in ten activations are weak: even ranks would show one strong image, even levels show the whole range."""
    values = np.array([10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    counts = np.array([1, 1, 1, 1, 1, 1, 1, 1, 2, 990], dtype=np.int64)
    assert np.repeat(values, counts)[spread_ranks(values, counts, 10)].tolist() == values.tolist()
    # Two distinct values name two images; the places left over go to even ranks among the rest.
    outlier = spread_ranks(np.array([100.0, 1.0]), np.array([1, 1000], dtype=np.int64), 5)
    assert outlier.tolist() == [0, 1, 2, 501, 1000]


def _even(count: int, wanted: int) -> list[int]:
    """Ranks evenly spaced among `count`, both ends included."""
    return list(range(count)) if count <= wanted else np.round(np.linspace(0, count - 1, wanted)).astype(int).tolist()


def _plain_spread(ranked: list[tuple[float, int]], wanted: int) -> list[int]:
    """Rows at even levels of activation, from (activation, row) in the order of strength."""
    if len(ranked) <= wanted:
        return [row for _, row in ranked]
    nearest = {
        min(range(len(ranked)), key=lambda rank: (abs(ranked[rank][0] - level), -ranked[rank][0], rank))
        for level in np.linspace(ranked[0][0], ranked[-1][0], wanted)
    }
    others = [rank for rank in range(len(ranked)) if rank not in nearest]
    chosen = nearest | {others[place] for place in _even(len(others), wanted - len(nearest))}
    return [ranked[rank][1] for rank in sorted(chosen)]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Activations of 3 neurons on some images, many of them equal, and which image each row shows."""
    image_count = draw(st.integers(1, 24))
    levels = st.sampled_from([0.0, 0.0, 6e-8, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 60000.0]) | st.floats(0, 8, width=16)
    rows = st.lists(levels, min_size=3, max_size=3)
    dense = np.array(draw(st.lists(rows, min_size=image_count, max_size=image_count)), np.float32)
    shown = draw(st.lists(st.integers(0, image_count - 1), min_size=1, max_size=40))
    return dense.astype(np.float16).astype(np.float32), shown


@settings(deadline=None, max_examples=80)
@given(worlds(), st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
def test_exemplars_are_those_of_a_plain_sort(
    tmp_path_factory: pytest.TempPathFactory,
    world: tuple[np.ndarray, list[int]],
    size: int,
    top_count: int,
    spread_count: int,
) -> None:
    dense, shown = world
    folder = tmp_path_factory.mktemp("exemplars")
    records = [image_record(row, sha256=f"{image:064x}") for row, image in enumerate(shown)]
    shards = write_shards(folder, _codes(dense[shown]), neuron_count=3, size=size, records=records)
    first = np.array([shown.index(image) == row for row, image in enumerate(shown)])
    write_exemplars(folder, shards, first, top_count=top_count, spread_count=spread_count)
    store = ExemplarStore(folder)
    assert store.follows_from(shards, first, top_count=top_count, spread_count=spread_count)
    for neuron_id in range(3):
        values = {row: float(dense[image, neuron_id]) for row, image in enumerate(shown) if dense[image, neuron_id] > 0}
        ranked = sorted(((value, row) for row, value in values.items() if first[row]), key=lambda p: (-p[0], p[1]))
        top = store.exemplars(neuron_id, ExemplarKind.TOP, 100)
        spread = store.exemplars(neuron_id, ExemplarKind.SPREAD, 100)
        assert [each.row for each in top] == [row for _, row in ranked[:top_count]]
        assert [each.row for each in spread] == _plain_spread(ranked, spread_count)
        for each in (*top, *spread):
            assert each.value == values[each.row]
            # Quantiles are over all rows on which the neuron fires, equal bytes included.
            assert each.quantile == sum(value < each.value for value in values.values()) / len(values)
