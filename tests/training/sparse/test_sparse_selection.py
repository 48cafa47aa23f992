import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sparse.selection import ActiveRows, Selector
from training.sparse.threads import Threads


def dense(active: ActiveRows, row_count: int, neuron_count: int) -> np.ndarray:
    table = np.zeros((row_count, neuron_count), np.float32)
    for row in range(row_count):
        mine = slice(active.row_starts[row], active.row_starts[row + 1])
        assert (np.diff(active.neuron_ids[mine]) > 0).all()
        table[row, active.neuron_ids[mine]] = active.values[mine]
    return table


def due(pre: torch.Tensor, k: int, *, is_over_batch: bool) -> np.ndarray:
    """The k largest of each row, or the k x rows largest, where positive, by sorting."""
    ranked = pre.flatten()[None] if is_over_batch else pre
    count = min(k * len(pre) if is_over_batch else k, ranked.shape[1])
    edge = ranked.topk(count, dim=1).values[:, -1:]
    return torch.where((pre >= edge) & (pre > 0), pre, 0).numpy()


@pytest.mark.parametrize("is_over_batch", [True, False])
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 40), neurons=st.integers(1, 70), k=st.integers(1, 12))
@settings(max_examples=40)
def test_it_selects_what_sorting_selects_batch_after_batch(
    is_over_batch: bool, seed: int, rows: int, neurons: int, k: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = min(k, neurons)
    selector = Selector(k, is_over_batch=is_over_batch, threads=Threads(2))
    for scale in (1.0, 1.1, 0.01, 100.0):  # floors learnt from one batch must not mislead the next
        inputs = torch.randn(rows, 5, generator=generator) * torch.rand(rows, 1, generator=generator) * scale
        encoder = torch.randn(neurons, 5, generator=generator)
        bias = torch.randn(neurons, generator=generator) * scale * 0.1
        found = dense(selector.select(inputs, encoder, bias), rows, neurons)
        assert np.array_equal(found, due(torch.addmm(bias, inputs, encoder.T), k, is_over_batch=is_over_batch))


@pytest.mark.parametrize("is_over_batch", [True, False])
def test_more_neurons_than_a_block_holds_are_selected_alike(
    is_over_batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, encoder = torch.randn(64, 8, generator=generator), torch.randn(700, 8, generator=generator)
    bias = torch.zeros(700)
    whole = Selector(6, is_over_batch=is_over_batch, threads=Threads(1)).select(inputs, encoder, bias)
    selector = Selector(6, is_over_batch=is_over_batch, threads=Threads(1), block_values=64 * 100)
    parts = selector.select(inputs, encoder, bias)
    assert np.array_equal(whole.row_starts, parts.row_starts)
    assert np.array_equal(whole.neuron_ids, parts.neuron_ids)
    assert np.allclose(whole.values, parts.values, rtol=1e-6)


def test_of_equal_values_over_a_batch_only_so_many_stay() -> None:
    selector = Selector(1, is_over_batch=True, threads=Threads(1))
    active = selector.select(torch.ones(4, 1), torch.ones(3, 1), torch.zeros(3))
    assert active.values.tolist() == [1, 1, 1, 1]
    assert active.row_starts.tolist() == [0, 3, 4, 4, 4]


def test_nothing_is_selected_where_nothing_is_positive_or_a_number() -> None:
    for is_over_batch in (True, False):
        selector = Selector(2, is_over_batch=is_over_batch, threads=Threads(1))
        for value in (-1.0, float("nan")):
            active = selector.select(torch.full((3, 1), value), torch.ones(4, 1), torch.zeros(4))
            assert active.row_starts.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("is_over_batch", [True, False])
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 40), neurons=st.integers(1, 70), k=st.integers(1, 12))
@settings(max_examples=40)
def test_bfloat16_misses_only_what_rounding_can_hide_and_gives_values_in_float32(
    is_over_batch: bool, seed: int, rows: int, neurons: int, k: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = min(k, neurons)
    selector = Selector(k, is_over_batch=is_over_batch, threads=Threads(2), in_bfloat16=True)
    for scale in (1.0, 1.1, 0.01, 100.0):
        inputs = torch.randn(rows, 5, generator=generator) * torch.rand(rows, 1, generator=generator) * scale
        encoder = torch.randn(neurons, 5, generator=generator)
        bias = torch.randn(neurons, generator=generator) * scale * 0.1
        found = torch.from_numpy(dense(selector.select(inputs, encoder, bias), rows, neurons))
        exact = torch.addmm(bias, inputs, encoder.T)
        # Four roundings to 8 bits: of input, weight, bias and sum.
        doubt = 2.0**-7 * (torch.addmm(bias.abs(), inputs.abs(), encoder.T.abs()))
        chosen = found > 0
        torch.testing.assert_close(found[chosen], exact[chosen], rtol=1e-4, atol=1e-5 * scale)
        assert int(chosen.sum()) <= k * rows
        edge = torch.where(chosen, found, torch.inf)
        edge = edge.min() if is_over_batch else edge.amin(dim=1, keepdim=True)
        count = chosen.sum() if is_over_batch else chosen.sum(dim=1, keepdim=True)
        wanted = k * rows if is_over_batch else k
        # Where fewer than wanted were found, all that is surely positive must be among them.
        bar = torch.where(count < wanted, torch.zeros_like(edge), edge)
        assert not bool((~chosen & (exact > bar + 2 * doubt)).any())


def test_bfloat16_selects_in_blocks_and_what_is_no_number_never() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, encoder = torch.randn(64, 8, generator=generator), torch.randn(700, 8, generator=generator)
    whole = Selector(6, is_over_batch=True, threads=Threads(1), in_bfloat16=True)
    parts = Selector(6, is_over_batch=True, threads=Threads(1), in_bfloat16=True, block_values=64 * 100)
    one, other = (selector.select(inputs, encoder, torch.zeros(700)) for selector in (whole, parts))
    assert np.array_equal(one.neuron_ids, other.neuron_ids)
    assert np.array_equal(one.values, other.values)
    empty = whole.select(torch.full((3, 8), float("nan")), encoder, torch.zeros(700))
    assert empty.row_starts.tolist() == [0, 0, 0, 0]
