"""Dense activations as shards of stored codes, and back: what properties of the index are tried on."""

import numpy as np
from hypothesis import strategies as st

from index.retrieval.exact import SearchShard
from index.retrieval.postings import build_postings, row_norms


def make_shards(dense: np.ndarray, cuts: list[int] | None = None) -> list[SearchShard]:
    """Cut dense float16 [rows, neurons] before the rows `cuts`, each shard in the layout of the index."""
    bounds = [0, *sorted(cuts or []), len(dense)]
    return [_shard(dense[start:stop], start) for start, stop in zip(bounds, bounds[1:], strict=False)]


def _shard(dense: np.ndarray, start: int) -> SearchShard:
    ids, values = [], []
    for row in dense:
        active = np.flatnonzero(row)
        order = active[np.lexsort((active, -row[active].astype(np.float64)))]
        ids.append(order.astype(np.int32))
        values.append(row[order])
    offsets = np.zeros(len(dense) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in ids], out=offsets[1:])
    neuron_ids = np.concatenate([np.zeros(0, np.int32), *ids])
    all_values = np.concatenate([np.zeros(0, np.float16), *values])
    return SearchShard(
        start=start,
        postings=build_postings(offsets, neuron_ids, all_values, neuron_count=dense.shape[1]),
        offsets=offsets,
        neuron_ids=neuron_ids,
        values=all_values,
        norms=row_norms(offsets, all_values),
    )


@st.composite
def sparse_activations(draw: st.DrawFn, *, max_rows: int = 40, max_neurons: int = 9) -> np.ndarray:
    """Dense float16 [rows, neurons], mostly zeros, with ties, tiny and huge numbers."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, max_rows)), draw(st.integers(1, max_neurons)))
    few = np.array([6e-8, 1e-4, 0.25, 0.5, 1.0, 1.001, 3.0, 900.0], dtype=np.float16)
    many = generator.gamma(2.0, 1.0, shape).astype(np.float16) + np.float16(1e-3)
    values = np.where(generator.random(shape) < draw(st.floats(0, 1)), generator.choice(few, shape), many)
    # Each neuron has a density of its own; some fire never or always.
    fires = generator.random(shape) < generator.choice([0.0, 0.2, 0.5, 1.0], shape[1])
    return np.where(fires, values, np.float16(0)).astype(np.float16)


def cut_places(row_count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, row_count), max_size=3)
