"""The strongest images: found in shards and merged in any order, they are those of the whole."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.retrieval.exact import SearchShard
from index.tops import Tops, merge_tops, read_tops, top_images, write_tops
from phosphene.errors import ArtefactDamaged
from tests.index.shards import cut_places, make_shards, sparse_activations


def _tops(shard: SearchShard, limit: int) -> Tops:
    neuron_count = shard.postings.neuron_count
    tops = top_images(shard.offsets, shard.neuron_ids, shard.values, neuron_count=neuron_count, limit=limit)
    return tops.moved(shard.start)


def _listed(tops: Tops) -> list[list[tuple[int, float]]]:
    return [
        [(int(row), float(value)) for row, value in zip(*tops.of(neuron_id), strict=True)]
        for neuron_id in range(len(tops.starts) - 1)
    ]


@settings(max_examples=40)
@given(st.data(), st.integers(1, 12))
def test_tops_equal_a_sort_however_they_are_merged(data: st.DataObject, limit: int) -> None:
    dense = data.draw(sparse_activations())
    due = []
    for neuron_id in range(dense.shape[1]):
        rows = np.flatnonzero(dense[:, neuron_id])
        order = rows[np.lexsort((rows, -dense[rows, neuron_id].astype(np.float64)))][:limit]
        due.append([(int(row), float(dense[row, neuron_id])) for row in order])
    parts = [_tops(shard, limit) for shard in make_shards(dense, data.draw(cut_places(len(dense))))]
    assert _listed(merge_tops(parts, limit=limit)) == due
    assert _listed(merge_tops(data.draw(st.permutations(parts)), limit=limit)) == due
    some = merge_tops(data.draw(st.lists(st.sampled_from(parts), min_size=1)), limit=limit)
    assert _listed(merge_tops([some, *parts, *parts], limit=limit)) == due


def test_tops_come_back_from_disk(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).gamma(2.0, 1.0, (50, 6)).astype(np.float16)
    tops = _tops(make_shards(dense)[0], 7)
    write_tops(tmp_path, tops)
    assert _listed(read_tops(tmp_path)) == _listed(tops)
    np.save(tmp_path / "tops" / "rows.npy", tops.rows[:-1].astype(np.uint16))
    with pytest.raises(ArtefactDamaged, match="starts.npy names 42 images; rows.npy has 41"):
        read_tops(tmp_path)
