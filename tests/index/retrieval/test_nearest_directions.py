"""Nearest directions equal the products with all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from index.retrieval.nearest_directions import NearestDirections


def by_force(directions, vector, count):
    products = []
    for row in directions.astype(np.float64):
        total = 0.0
        for ours, theirs in zip(row.tolist(), vector.astype(np.float64).tolist(), strict=True):
            total += ours * theirs
        products.append(total)
    order = sorted(range(len(products)), key=lambda row: (-products[row], row))[:count]
    return order, [products[row] for row in order]


@settings(max_examples=200)
@given(
    directions=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.just(6)),
        elements=st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-100, 100, width=32)),
    ),
    vector=hnp.arrays(np.float32, 6, elements=st.floats(-100, 100, width=32)),
    count=st.integers(1, 15),
)
def test_equals_all_products(directions, vector, count):
    rows, products = NearestDirections(directions).nearest(vector, count)
    expected_rows, expected = by_force(directions, vector, count)
    assert rows.tolist() == expected_rows
    assert products.tolist() == expected


@pytest.mark.parametrize("width", [64, 1024, 4096])
@pytest.mark.parametrize("tail", [0.0, 1.5])
def test_equals_all_products_where_most_are_left_out(width, tail):
    generator = np.random.default_rng(width)
    directions = generator.normal(size=(3000, width)) * generator.lognormal(0, tail, size=(1, width))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    directions[17] = directions[2500]
    search = NearestDirections(directions)
    for vector in (directions[2500], generator.normal(size=width).astype(np.float32)):
        rows, products = search.nearest(vector, 10)
        expected_rows, expected = by_force(directions[rows], vector, 10)
        assert expected_rows == list(range(10))
        assert products.tolist() == expected
        others = np.delete(directions.astype(np.float64), rows, axis=0) @ vector.astype(np.float64)
        assert others.max() <= products[-1] + 1e-12
    assert search.nearest(directions[2500], 2)[0].tolist() == [17, 2500]
