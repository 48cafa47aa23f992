"""Figures merged over shards equal those over the whole, however it is cut and in whatever order it is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.activation_counts import ActivationCounts, count_activations, merge_counts, neuron_blocks
from index.keyed_sums import merge_sums, sum_by_key
from index.label_masses import label_masses, merge_masses
from index.retrieval.exact import SearchShard
from index.statistics import QUANTILE_PROBABILITIES
from tests.index.shards import cut_places, make_shards, sparse_activations


def _entropy(values: np.ndarray, labels: np.ndarray) -> float | None:
    if not bool((labels >= 0).any()):
        return None
    mass = np.bincount(labels[labels >= 0], weights=values[labels >= 0].astype(np.float64))
    shares = mass[mass > 0] / mass.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def _counts(shards: list[SearchShard], neurons: range) -> ActivationCounts:
    return merge_counts([count_activations(shard.neuron_ids, shard.values, neurons=neurons) for shard in shards])


@settings(max_examples=40)
@given(st.data())
def test_merged_figures_equal_numpys(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations())
    shards = make_shards(dense, data.draw(cut_places(len(dense))))
    shards = data.draw(st.permutations(shards))
    for neurons in neuron_blocks(dense.shape[1], data.draw(st.integers(1, 10))):
        counts = _counts(shards, neurons)
        assert counts.firing_counts.tolist() == (dense[:, neurons] > 0).sum(axis=0).tolist()
        for neuron_id in neurons:
            values = dense[dense[:, neuron_id] > 0, neuron_id].astype(np.float64)
            figures = counts.statistics(neuron_id)
            if not len(values):
                assert (figures.mean, figures.std, figures.maximum, figures.quantiles) == (0.0, 0.0, 0.0, ())
                continue
            assert figures.mean == pytest.approx(values.mean())
            assert figures.std == pytest.approx(values.std(), abs=1e-9 * values.max())
            assert figures.maximum == values.max()
            assert figures.quantiles == tuple(
                np.sort(values)[[int(p * (len(values) - 1)) for p in QUANTILE_PROBABILITIES]]
            )
            for value in (0.0, *values[:3], 1e9):
                assert counts.share_below(neuron_id, value) == (values < value).mean()


@settings(max_examples=40)
@given(st.data())
def test_the_cut_into_shards_and_their_order_change_no_bit(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations())
    neurons = range(dense.shape[1])
    whole = _counts(make_shards(dense), neurons)
    parts = data.draw(st.permutations(make_shards(dense, data.draw(cut_places(len(dense))))))
    merged = _counts(parts, neurons)
    assert [merged.statistics(neuron_id) for neuron_id in neurons] == [
        whole.statistics(neuron_id) for neuron_id in neurons
    ]


def test_a_wide_block_takes_wide_keys() -> None:
    ids, values = np.array([5, 1 << 20, 5], dtype=np.int32), np.array([2, 7, 4], dtype=np.float16)
    counts = count_activations(ids, values, neurons=range(2_000_000))
    assert counts.statistics(5).mean == 3.0
    assert counts.statistics(1 << 20).maximum == 7.0
    assert counts.firing_counts.sum() == 3


@settings(max_examples=40)
@given(st.data())
def test_label_entropies_equal_those_of_the_whole(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations())
    labels = np.array(data.draw(st.lists(st.integers(-1, 4), min_size=len(dense), max_size=len(dense))), np.int64)
    shards = data.draw(st.permutations(make_shards(dense, data.draw(cut_places(len(dense))))))
    for neurons in neuron_blocks(dense.shape[1], data.draw(st.integers(1, 10))):
        masses = [
            label_masses(
                shard.offsets,
                shard.neuron_ids,
                shard.values,
                labels[shard.start : shard.start + len(shard.norms)],
                neurons=neurons,
            )
            for shard in shards
        ]
        for neuron_id, found in zip(neurons, merge_masses(masses).entropies(), strict=True):
            fires = dense[:, neuron_id] > 0
            due = _entropy(dense[fires, neuron_id], labels[fires])
            assert np.isnan(found) if due is None else found == pytest.approx(due, abs=1e-9)


@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(-5, 5)))))
def test_sums_by_key_merge_to_the_sums_of_all(parts: list[list[tuple[int, int]]]) -> None:
    merged = merge_sums(
        [
            sum_by_key(np.array([k for k, _ in part], dtype=np.int64), np.array([a for _, a in part], dtype=np.int64))
            for part in parts
        ]
    )
    due: dict[int, int] = {}
    for key, amount in [pair for part in parts for pair in part]:
        due[key] = due.get(key, 0) + amount
    assert dict(zip(merged.keys.tolist(), merged.sums.tolist(), strict=True)) == due
    assert merged.keys.tolist() == sorted(due)


def test_label_entropy_is_weighted_by_activation() -> None:
    dense = np.array([[3, 1, 0], [1, 1, 2], [4, 0, 0]], dtype=np.float16)
    shard = make_shards(dense)[0]
    masses = label_masses(shard.offsets, shard.neuron_ids, shard.values, np.array([0, 1, -1]), neurons=range(3))
    # Shares 3/4 and 1/4: the third image has no label.
    assert masses.entropies().tolist() == pytest.approx([-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)), 1.0, 0.0])
