"""Nearest neurons by direction: brute force, ties by id."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.directions import DirectionSearch, write_directions
from phosphene.errors import ArtefactDamaged


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 200), st.integers(1, 60))
def test_equal_directions_go_by_id(
    tmp_path_factory: pytest.TempPathFactory, seed: int, neurons: int, count: int
) -> None:
    """A few kinds of directions, zero among them, many times each."""
    generator = np.random.default_rng(seed)
    kinds = np.concatenate([np.zeros((1, 8)), generator.normal(size=(4, 8))]).astype(np.float32)
    directions = kinds[generator.integers(0, 5, neurons)]
    folder = tmp_path_factory.mktemp("directions")
    write_directions(folder, directions)
    search = DirectionSearch(folder, neurons)
    units = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    for query in (kinds[0], kinds[1], 3 * kinds[2] - kinds[3]):
        # Row by row, so that equal directions have equal cosines.
        cosines = (units.astype(np.float64) * query).sum(axis=1) / max(float(np.linalg.norm(query)), 1e-9)
        due = np.lexsort((np.arange(neurons), -cosines))[:count]
        found = search.nearest(query, count)
        assert [neuron for neuron, _ in found] == due.tolist()
        np.testing.assert_allclose([cosine for _, cosine in found], cosines[due], atol=1e-5)
    like = [neuron for neuron, _ in search.like(0, count)]
    assert 0 not in like
    assert len(like) == min(count, neurons - 1)


def test_directions_of_other_neurons_are_refused(tmp_path: Path) -> None:
    write_directions(tmp_path, np.eye(3, dtype=np.float32))
    assert DirectionSearch(tmp_path, 3).width == 3
    with pytest.raises(ArtefactDamaged, match="holds 3 directions of 4"):
        DirectionSearch(tmp_path, 4)
