"""Codes agree within a tolerance, and neurons may differ at the edge of the selection alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phosphene.agreement import tokens_differ, top_overlap, value_differences
from phosphene.codes import ImageCode, TokenCodes
from phosphene.selection import JumpReLU, TopK, select

TOLERANCE = torch.tensor([[0.01]])


def codes(*pairs: tuple[int, float], cut: int = 0) -> TokenCodes:
    return TokenCodes(
        torch.tensor([[value for _, value in pairs]]),
        torch.tensor([[neuron for neuron, _ in pairs]]),
        torch.tensor([cut]),
    )


@given(st.integers(0, 2**31), st.floats(0, 0.009))
def test_noise_below_the_tolerance_never_differs_and_above_it_always(seed: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(5, 40, generator=generator)
    noisy = dense + noise * (2 * torch.rand(5, 40, generator=generator) - 1)
    for rule in (TopK(6), JumpReLU(torch.full((40,), 0.5))):
        due = select(rule, dense, limit=8)
        tolerance = torch.full((5, 1), 0.01)
        assert not tokens_differ(due, select(rule, noisy, limit=8), rule, tolerance).any()
        wrong = due._replace(values=torch.where(due.values > 0, due.values + 0.02, 0))
        assert tokens_differ(due, wrong, rule, tolerance).equal(due.values.sum(-1) > 0)


@pytest.mark.parametrize(
    ("found", "differs"),
    [
        (codes((3, 5.0), (1, 2.0)), False),
        (codes((3, 5.005), (1, 1.995)), False),
        (codes((3, 5.02), (1, 2.0)), True),
        (codes((3, 5.0), (7, 2.0)), False),  # the last place, where a hair decides
        (codes((7, 5.0), (1, 2.0)), True),
        (codes((3, 5.0), (1, 2.0), (0, 0.0)), False),
    ],
)
def test_a_neuron_may_be_exchanged_at_the_last_place_alone(found: TokenCodes, differs: bool) -> None:
    due = codes((3, 5.0), (1, 2.0))
    assert bool(tokens_differ(due, found, TopK(2), TOLERANCE)) is differs
    assert bool(tokens_differ(found, due, TopK(2), TOLERANCE)) is differs


@pytest.mark.parametrize("found", [codes((3, 5.0), (0, 0.0), (0, 0.0)), codes((0, 0.0), (0, 0.0), (0, 0.0))])
def test_where_places_are_left_over_only_zero_is_the_edge(found: TokenCodes) -> None:
    due, rule = codes((3, 5.0), (1, 2.0), (0, 0.0)), TopK(3)
    assert tokens_differ(due, found, rule, TOLERANCE).all()
    assert tokens_differ(found, due, rule, TOLERANCE).all()
    assert not tokens_differ(codes((3, 5.0), (1, 0.01), (0, 0.0)), codes((3, 5.0), (0, 0.0)), rule, TOLERANCE).any()


def test_jumprelu_forgives_at_the_threshold_and_not_above_it() -> None:
    rule = JumpReLU(torch.tensor([1.0, 1.0, 1.0]))
    assert not tokens_differ(codes((0, 3.0), (1, 1.01)), codes((0, 3.0)), rule, TOLERANCE).any()
    assert tokens_differ(codes((0, 3.0), (1, 1.5)), codes((0, 3.0)), rule, TOLERANCE).all()
    assert not tokens_differ(codes((0, 3.0), (1, 1.5), cut=1), codes((0, 3.0), (2, 1.5), cut=1), rule, TOLERANCE).any()


def test_differences_are_those_of_shared_neurons() -> None:
    differences = value_differences(codes((3, 5.0), (1, 2.0)), codes((1, 2.5), (4, 1.0)))
    assert differences.tolist() == [[0.0, 0.5]]


def test_overlap_counts_the_strongest() -> None:
    def image(*neurons: int) -> ImageCode:
        return ImageCode(
            neuron_ids=np.array(neurons, np.int32), values=np.arange(len(neurons), 0, -1).astype(np.float32)
        )

    assert top_overlap([image(1, 2, 3)], [image(2, 1, 4)], count=2) == 1.0
    assert top_overlap([image(1, 2, 3), image()], [image(2, 1, 4), image(5)], count=3) == pytest.approx(2 / 3)
    assert top_overlap([image()], [image(1)], count=10) == 1.0
