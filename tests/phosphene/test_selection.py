"""Selections against a plain reference: sort by (-value, neuron id), keep the first ones."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.codes import TokenCodes
from phosphene.selection import JumpReLU, TopK, select

# Whole numbers in a narrow range: ties abound.
rows = st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=5)


def reference(row: list[float], thresholds: list[float], width: int) -> list[tuple[int, float]]:
    active = [(neuron, value) for neuron, value in enumerate(row) if value > max(0.0, thresholds[neuron])]
    return sorted(active, key=lambda pair: (-pair[1], pair[0]))[:width]


def pairs(codes: TokenCodes, token: int) -> list[tuple[int, float]]:
    return [
        (int(neuron), float(value))
        for neuron, value in zip(codes.neuron_ids[token], codes.values[token], strict=True)
        if value > 0
    ]


@given(rows, st.integers(1, 9))
def test_topk_equals_the_reference_ties_included(values: list[list[int]], k: int) -> None:
    codes = select(TopK(k), torch.tensor(values, dtype=torch.float32), limit=64)
    for token, row in enumerate(values):
        assert pairs(codes, token) == reference(row, [0.0] * 7, k)


@given(rows, st.lists(st.integers(-1, 2), min_size=7, max_size=7), st.integers(1, 9))
def test_jumprelu_equals_the_reference_and_counts_what_it_cuts(
    values: list[list[int]], thresholds: list[int], limit: int
) -> None:
    rule = JumpReLU(torch.tensor(thresholds, dtype=torch.float32))
    codes = select(rule, torch.tensor(values, dtype=torch.float32), limit=limit)
    for token, row in enumerate(values):
        whole = reference(row, thresholds, 7)
        assert pairs(codes, token) == whole[:limit]
        assert int(codes.cut_counts[token]) == len(whole) - len(whole[:limit])


@given(rows)
@settings(max_examples=20)
def test_unused_slots_are_zero(values: list[list[int]]) -> None:
    codes = select(TopK(7), torch.tensor(values, dtype=torch.float32), limit=64)
    unused = codes.values <= 0
    assert bool((codes.values[unused] == 0).all())
    assert bool((codes.neuron_ids[unused] == 0).all())


@given(st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=20)
def test_a_token_is_coded_the_same_alone(seed: int, k: int) -> None:
    pre_activations = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
    together = select(TopK(k), pre_activations, limit=64)
    for token in range(6):
        alone = select(TopK(k), pre_activations[token : token + 1], limit=64)
        assert pairs(alone, 0) == pairs(together, token)
