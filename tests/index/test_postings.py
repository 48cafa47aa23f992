"""Postings, exemplars and figures against a plain dense reference."""

from pathlib import Path

import numpy as np
import pytest

from index.codes_store import CodesStore, write_codes
from index.exemplars import ExemplarStore, first_rows, spread_places, write_exemplars
from index.postings import Postings, write_postings
from index.statistics import QUANTILE_PROBABILITIES, activation_statistics, label_entropy
from index.values import ExemplarKind
from tests.index.random_codes import NEURON_COUNT, dense, random_codes

CODES = random_codes(150)
DENSE = dense(CODES, NEURON_COUNT + 1)  # The last neuron never fires.


@pytest.fixture
def postings(tmp_path: Path) -> Postings:
    write_codes(tmp_path, CODES)
    write_postings(tmp_path, CodesStore(tmp_path), NEURON_COUNT + 1)
    return Postings(tmp_path)


def test_postings_are_the_codes_turned_round(postings: Postings) -> None:
    for neuron_id in range(postings.neuron_count):
        firing = np.flatnonzero(DENSE[:, neuron_id])
        order = np.lexsort((firing, -DENSE[firing, neuron_id]))
        np.testing.assert_array_equal(postings.rows(neuron_id), firing[order])
        np.testing.assert_array_equal(postings.values(neuron_id), DENSE[firing[order], neuron_id])


def test_small_blocks_give_the_same_postings(tmp_path: Path, postings: Postings) -> None:
    store = CodesStore(tmp_path)
    whole = CodesStore.row_blocks
    other = tmp_path / "other"
    other.mkdir()
    blocky = type("Blocky", (CodesStore,), {"row_blocks": lambda self: whole(self, 7)})(tmp_path)
    write_postings(other, blocky, NEURON_COUNT + 1)
    assert len(list(blocky.row_blocks())) > len(list(store.row_blocks()))
    for name in ("offsets.npy", "rows.npy", "values.npy"):
        assert (other / "postings" / name).read_bytes() == (tmp_path / "postings" / name).read_bytes()


def test_quantile_is_the_share_of_smaller_activations(postings: Postings) -> None:
    generator = np.random.default_rng(0)
    for neuron_id in range(postings.neuron_count):
        values = DENSE[DENSE[:, neuron_id] > 0, neuron_id]
        for value in [*generator.gamma(2.0, 1.0, 3), *values[:3], 0.0, 1e9]:
            rounded = float(np.float16(min(value, 65504)))
            due = float((values < rounded).mean()) if len(values) else 0.0
            assert postings.quantile(neuron_id, float(value)) == due


@pytest.mark.parametrize("repeats", [1, 3])
def test_exemplars_are_the_strongest_images_each_once(tmp_path: Path, postings: Postings, repeats: int) -> None:
    digests = [f"{row // repeats:064x}" for row in range(len(CODES))]
    write_exemplars(tmp_path, postings, first_rows(digests), top_count=8, spread_count=5)
    store = ExemplarStore(tmp_path, postings)
    for neuron_id in range(postings.neuron_count):
        best: dict[str, float] = {}
        for row in np.argsort(-DENSE[:, neuron_id], kind="stable"):
            if DENSE[row, neuron_id] > 0:
                best.setdefault(digests[row], float(DENSE[row, neuron_id]))
        top = store.exemplars(neuron_id, ExemplarKind.TOP, 100)
        assert [exemplar.value for exemplar in top] == list(best.values())[:8]
        assert len({digests[exemplar.row] for exemplar in top}) == len(top)
        assert store.exemplars(neuron_id, ExemplarKind.TOP, 3) == top[:3]
        spread = store.exemplars(neuron_id, ExemplarKind.SPREAD, 100)
        assert [exemplar.value for exemplar in spread] == [list(best.values())[i] for i in spread_places(len(best), 5)]
        for exemplar in top + spread:
            assert exemplar.value == DENSE[exemplar.row, neuron_id]
            assert exemplar.quantile == postings.quantile(neuron_id, exemplar.value)


def test_spread_takes_both_ends_and_never_repeats() -> None:
    for available in range(40):
        for wanted in range(1, 20):
            places = spread_places(available, wanted)
            assert len(set(places)) == min(available, wanted)
            if available and wanted > 1:
                assert (places[0], places[-1]) == (0, available - 1)


def test_rows_without_a_digest_are_not_duplicates() -> None:
    assert first_rows(["aa", "", "", "aa"]).tolist() == [0, 1, 2, 0]


def test_statistics_equal_numpys(postings: Postings) -> None:
    for neuron_id in range(postings.neuron_count):
        figures = activation_statistics(postings.values(neuron_id))
        values = DENSE[DENSE[:, neuron_id] > 0, neuron_id]
        if not len(values):
            assert (figures.mean, figures.std, figures.maximum, figures.quantiles) == (0.0, 0.0, 0.0, ())
            continue
        assert figures.mean == pytest.approx(values.mean())
        assert figures.std == pytest.approx(values.std())
        assert figures.maximum == values.max()
        due = np.quantile(values, QUANTILE_PROBABILITIES, method="lower")
        assert figures.quantiles == pytest.approx(due)


def test_label_entropy_is_weighted_by_activation() -> None:
    values = np.array([3.0, 1.0, 4.0], dtype=np.float16)
    # Shares 3/4 and 1/4; the third image has no label.
    entropy = label_entropy(values, np.array([0, 1, -1]))
    assert entropy == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert label_entropy(values, np.array([2, 2, 2])) == 0.0
    assert label_entropy(values, np.array([-1, -1, -1])) is None
