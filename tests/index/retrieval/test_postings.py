"""Postings hold what the codes hold, within what a posting can tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.retrieval.posting_kernels import unpacked
from index.retrieval.postings import build_postings, row_norms

NEURONS = 9
stored = st.dictionaries(st.integers(0, NEURONS - 1), st.floats(2**-24, 65504.0, width=16), max_size=NEURONS)


def arrays(codes):
    offsets = np.cumsum([0, *(len(code) for code in codes)]).astype(np.int64)
    neuron_ids = np.array([neuron for code in codes for neuron in code], dtype=np.int32)
    return offsets, neuron_ids, np.array([value for code in codes for value in code.values()], dtype=np.float16)


@given(st.lists(stored, max_size=8))
def test_postings_are_the_codes_by_neuron_within_half_a_scale(codes):
    postings = build_postings(*arrays(codes), neuron_count=NEURONS)
    assert postings.row_count == len(codes)
    assert postings.neuron_count == NEURONS
    assert postings.words.dtype == np.uint32
    assert postings.scale == np.float32(postings.scale)
    for neuron in range(NEURONS):
        firing = [row for row, code in enumerate(codes) if neuron in code]
        assert postings.rows(neuron).tolist() == firing
        values = postings.values(neuron)
        assert values.dtype == np.float32
        assert (values > 0).all()
        for row, value in zip(firing, values.tolist(), strict=True):
            exact = codes[row][neuron]
            half = postings.scale * 0.501
            assert abs(value - exact) <= max(half, postings.scale * 1.001 if exact < half else 0) + 1e-6 * exact


def test_every_float16_is_read_exactly():
    bits = np.arange(1, 0x7C00, dtype=np.uint16)
    read = [unpacked.py_func(int(value)) for value in bits]
    assert read == bits.view(np.float16).astype(np.float64).tolist()


@given(st.lists(stored, max_size=8))
def test_norms_are_those_of_the_stored_codes(codes):
    offsets, _, values = arrays(codes)
    expected = [float(np.linalg.norm(np.array(list(code.values())))) for code in codes]
    norms = row_norms(offsets, values)
    assert norms.dtype == np.float32
    assert norms.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_largest_shard_has_all_its_rows_and_a_larger_one_is_refused():
    offsets = np.arange(65_538, dtype=np.int64)
    neuron_ids, values = np.zeros(65_537, dtype=np.int32), np.ones(65_537, dtype=np.float16)
    whole = build_postings(offsets[:-1], neuron_ids[:-1], values[:-1], neuron_count=1)
    assert (whole.rows(0) == np.arange(65_536)).all()
    with pytest.raises(ValueError, match="65537 rows; the limit is 65536"):
        build_postings(offsets, neuron_ids, values, neuron_count=1)
