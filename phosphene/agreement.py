"""Whether two codes of the same residuals agree: values within a tolerance, neurons wherever the margin exceeds it.

The rule is docs/design.md, section 3 ("Same image, same code"). Knows nothing of what made the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phosphene.codes import ImageCode, TokenCodes
from phosphene.selection import JumpReLU, Selection, TopK

__all__ = ["tokens_differ", "top_overlap", "value_differences"]


def tokens_differ(
    due: TokenCodes, found: TokenCodes, selection: Selection, tolerance: Float[Tensor, "*tokens 1"]
) -> Bool[Tensor, "*tokens"]:
    """Tell for each token whether its two codes differ.

    Args:
        due: what the codes should be.
        found: what they are, with the same leading shape.
        selection: the rule that both were made with, on the codes' device.
        tolerance: per token, in the unit of the activations.

    Returns:
        True where a value is off by more than the tolerance, or where a neuron of one is missing in the other although
        it is above the place where the selection cuts by more than twice the tolerance.
    """
    return _lacks(due, found, selection, tolerance) | _lacks(found, due, selection, tolerance)


def value_differences(due: TokenCodes, found: TokenCodes) -> Float[Tensor, "*tokens width"]:
    """Give how far each value of `due` is from that of the same neuron in `found`; 0 where `found` lacks the neuron."""
    is_same, counterparts = _counterparts(due, found)
    return torch.where(is_same, (due.values - counterparts).abs(), 0)


def top_overlap(due: Sequence[ImageCode], found: Sequence[ImageCode], *, count: int) -> float:
    """Give the mean share of an image's strongest neurons that are among the strongest in its other code too.

    Args:
        due: the codes to measure against; images on which nothing fires are left out.
        found: the other codes of the same images.
        count: how many of the strongest neurons to look at.

    Returns:
        A share in [0, 1]; 1 where no image has a code.
    """
    shares = [
        len(np.intersect1d(left.neuron_ids[:count], right.neuron_ids[:count])) / min(count, len(left))
        for left, right in zip(due, found, strict=True)
        if len(left)
    ]
    return float(np.mean(shares)) if shares else 1.0


def _counterparts(
    codes: TokenCodes, others: TokenCodes
) -> tuple[Bool[Tensor, "*tokens width"], Float[Tensor, "*tokens width"]]:
    is_active = (codes.values > 0)[..., :, None] & (others.values > 0)[..., None, :]
    same = is_active & (codes.neuron_ids[..., :, None] == others.neuron_ids[..., None, :])
    return same.any(dim=-1), (same * others.values[..., None, :]).sum(dim=-1)


def _lacks(
    codes: TokenCodes, others: TokenCodes, selection: Selection, tolerance: Float[Tensor, "*tokens 1"]
) -> Bool[Tensor, "*tokens"]:
    """Tell where `codes` holds a neuron that `others` lacks or gives another value."""
    active = codes.values > 0
    is_same, counterparts = _counterparts(codes, others)
    close = (codes.values - counterparts).abs() <= tolerance
    lowest = torch.where(active, codes.values, torch.inf).amin(dim=-1, keepdim=True)
    match selection:
        case TopK(k=k):
            # Where fewer than k are active nothing was cut: a neuron comes or goes at 0 alone.
            is_full = active.sum(dim=-1, keepdim=True) >= k
            edge = torch.where(is_full, lowest, 0).expand_as(codes.values)
        case JumpReLU(threshold=threshold):
            is_cut = (codes.cut_counts > 0)[..., None]
            edge = torch.where(is_cut, lowest, threshold.clamp_min(0)[codes.neuron_ids])
        case _:
            assert_never(selection)
    on_edge = ~is_same & (codes.values <= edge + 2 * tolerance)
    return (active & ~close & ~on_edge).any(dim=-1)
