"""Codes on disk: what is read is what was written, within one float16 step."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.codes_store import CodesStore, stored_values, write_codes
from phosphene.codes import ImageCode
from phosphene.errors import ArtefactDamaged, NumericError
from tests.index.random_codes import NEURON_COUNT, dense, random_codes

EMPTY = ImageCode(neuron_ids=np.zeros(0, dtype=np.int32), values=np.zeros(0, dtype=np.float32))


def test_reads_what_was_written(tmp_path: Path) -> None:
    codes = [*random_codes(10), EMPTY]
    write_codes(tmp_path, codes, neuron_count=NEURON_COUNT)
    store = CodesStore(tmp_path)
    assert store.row_count == 11
    for row, code in enumerate(codes):
        stored = store.code(row)
        assert set(stored.neuron_ids) == set(code.neuron_ids)
        live = dict(zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True))
        for neuron_id, value in zip(stored.neuron_ids.tolist(), stored.values.tolist(), strict=True):
            assert abs(value - live[neuron_id]) <= np.spacing(np.float16(live[neuron_id]))


@given(st.lists(st.floats(min_value=2.0**-100, max_value=65472, width=32), min_size=1, max_size=30))
@settings(max_examples=100)
def test_every_active_neuron_stays_active_within_one_step(values: list[float]) -> None:
    live = np.array(values, dtype=np.float32)
    stored = stored_values(live)
    assert (stored > 0).all()
    assert (np.abs(stored.astype(np.float64) - live) <= np.spacing(stored).astype(np.float64)).all()


def test_new_ties_go_by_neuron_id(tmp_path: Path) -> None:
    # Different in float32, the same in float16.
    code = ImageCode(neuron_ids=np.array([7, 2], np.int32), values=np.array([1.0001, 1.0], np.float32), cut_count=3)
    write_codes(tmp_path, [code], neuron_count=8)
    stored = CodesStore(tmp_path).code(0)
    assert stored.neuron_ids.tolist() == [2, 7]
    assert stored.cut_count == 3


@pytest.mark.parametrize("value", [7e4, np.inf, np.nan])
def test_refuses_what_float16_cannot_hold(value: float) -> None:
    with pytest.raises(NumericError, match="65504"):
        stored_values(np.array([1.0, value], dtype=np.float32))


@pytest.mark.parametrize(("neuron_count", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_ids_take_two_bytes_where_all_fit(tmp_path: Path, neuron_count: int, dtype: type[np.generic]) -> None:
    last = ImageCode(neuron_ids=np.array([neuron_count - 1], np.int32), values=np.ones(1, np.float32))
    write_codes(tmp_path, [last], neuron_count=neuron_count)
    store = CodesStore(tmp_path)
    assert store.neuron_ids.dtype == dtype
    assert store.code(0).neuron_ids.dtype == np.int32
    assert store.code(0).neuron_ids.tolist() == [neuron_count - 1]


def test_values_of_a_neuron_are_those_of_its_rows(tmp_path: Path) -> None:
    codes = [EMPTY, *random_codes(40)]
    write_codes(tmp_path, codes, neuron_count=NEURON_COUNT)
    store = CodesStore(tmp_path)
    dense_codes = dense(codes)
    for neuron_id in range(0, NEURON_COUNT, 7):
        rows = np.flatnonzero(dense_codes[:, neuron_id])
        np.testing.assert_array_equal(store.values_of(neuron_id, rows), dense_codes[rows, neuron_id])


def test_row_blocks_cover_every_row_once(tmp_path: Path) -> None:
    write_codes(tmp_path, [*random_codes(30), EMPTY, EMPTY], neuron_count=NEURON_COUNT)
    store = CodesStore(tmp_path)
    for limit in (1, 13, 40, 10_000):
        blocks = list(store.row_blocks(limit))
        assert [row for start, stop in blocks for row in range(start, stop)] == list(range(32))
        assert all(stop == start + 1 or store.offsets[stop] - store.offsets[start] <= limit for start, stop in blocks)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_codes(tmp_path, random_codes(4), neuron_count=NEURON_COUNT)
    np.save(tmp_path / "codes" / "values.npy", np.ones(3, dtype=np.float16))
    with pytest.raises(ArtefactDamaged, match=r"values\.npy 3"):
        CodesStore(tmp_path)


def test_an_array_of_another_type_is_refused(tmp_path: Path) -> None:
    write_codes(tmp_path, random_codes(4), neuron_count=NEURON_COUNT)
    np.save(tmp_path / "codes" / "values.npy", np.ones(3, dtype=np.float64))
    with pytest.raises(ArtefactDamaged, match="float64"):
        CodesStore(tmp_path)


@pytest.mark.parametrize(("largest", "stored"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65_536, np.int32)])
def test_counts_of_cut_activations_take_the_bytes_that_the_largest_needs(
    tmp_path: Path, largest: int, stored: type[np.integer]
) -> None:
    cut = ImageCode(neuron_ids=EMPTY.neuron_ids, values=EMPTY.values, cut_count=largest)
    write_codes(tmp_path, [EMPTY, cut], neuron_count=NEURON_COUNT)
    assert np.load(tmp_path / "codes" / "cut_counts.npy").dtype == stored
    assert [CodesStore(tmp_path).code(row).cut_count for row in (0, 1)] == [0, largest]
