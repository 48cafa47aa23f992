"""Which neurons stay on at inference: TopK or JumpReLU; a token's choice never depends on another token.

TopK: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 2. JumpReLU: Rajamanoharan et al. 2024,
"Jumping ahead", eq. 4; with threshold 0 it is ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phosphene.codes import TokenCodes

__all__ = ["JumpReLU", "Selection", "TopK", "select", "select_ahead"]


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations that are greater than 0."""

    k: int
    """Neurons kept per token, at least 1."""


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """Every pre-activation that is greater than 0 and than its neuron's threshold."""

    threshold: Float[Tensor, " neurons"]
    """One threshold per neuron, in units of the pre-activation."""


Selection = TopK | JumpReLU


def select(selection: Selection, pre_activations: Float[Tensor, "tokens neurons"], *, limit: int) -> TokenCodes:
    """Turn pre-activations into codes; ties go to the lower neuron id.

    Args:
        selection: the rule.
        pre_activations: [tokens, neurons]; dense, so keep the block of tokens small.
        limit: `token_code_limit`, the neurons kept per token under JumpReLU.

    Returns:
        Codes of width k (TopK) or min(limit, neurons) (JumpReLU).
    """
    rectified, width = _rectify(selection, pre_activations, limit)
    values, neuron_ids, is_tied = _largest(rectified, width)
    if bool(is_tied.any()):
        order = torch.sort(rectified[is_tied], dim=-1, descending=True, stable=True)
        values[is_tied], neuron_ids[is_tied] = order.values[:, :width], order.indices[:, :width]
    return _as_codes(selection, rectified, values, neuron_ids)


def select_ahead(
    selection: Selection, pre_activations: Float[Tensor, "tokens neurons"], *, limit: int
) -> tuple[TokenCodes, Bool[Tensor, " tokens"]]:
    """As `select`, without waiting for the device: a tie at the last place is told instead of settled.

    Returns:
        Codes, and for each token whether its last place was tied; such a token must go through `select`.
    """
    rectified, width = _rectify(selection, pre_activations, limit)
    values, neuron_ids, is_tied = _largest(rectified, width)
    return _as_codes(selection, rectified, values, neuron_ids), is_tied


def _rectify(
    selection: Selection, pre_activations: Float[Tensor, "tokens neurons"], limit: int
) -> tuple[Float[Tensor, "tokens neurons"], int]:
    neuron_count = pre_activations.shape[-1]
    match selection:
        case TopK(k=k):
            return pre_activations.clamp_min(0), min(k, neuron_count)
        case JumpReLU(threshold=threshold):
            return torch.where(pre_activations > threshold.clamp_min(0), pre_activations, 0), min(limit, neuron_count)
        case _:
            assert_never(selection)


def _largest(
    rectified: Float[Tensor, "tokens neurons"], width: int
) -> tuple[Float[Tensor, "tokens width"], Int[Tensor, "tokens width"], Bool[Tensor, " tokens"]]:
    # torch.topk breaks ties in no stated order. One value more than asked shows whether the last place is tied.
    neuron_count = rectified.shape[-1]
    values, neuron_ids = torch.topk(rectified, min(width + 1, neuron_count), dim=-1)
    if neuron_count == width:
        return values, neuron_ids, torch.zeros(len(values), dtype=torch.bool, device=values.device)
    is_tied = (values[:, width - 1] == values[:, width]) & (values[:, width] > 0)
    return values[:, :width], neuron_ids[:, :width], is_tied


def _as_codes(
    selection: Selection,
    rectified: Float[Tensor, "tokens neurons"],
    values: Float[Tensor, "tokens width"],
    neuron_ids: Int[Tensor, "tokens width"],
) -> TokenCodes:
    by_neuron = torch.argsort(neuron_ids, dim=-1)
    values, neuron_ids = values.gather(-1, by_neuron), neuron_ids.gather(-1, by_neuron)
    by_value = torch.argsort(values, dim=-1, descending=True, stable=True)
    values, neuron_ids = values.gather(-1, by_value), neuron_ids.gather(-1, by_value)
    match selection:
        case TopK():
            cut_counts = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        case JumpReLU():
            cut_counts = (rectified > 0).sum(-1) - (values > 0).sum(-1)
        case _:
            assert_never(selection)
    return TokenCodes(values, torch.where(values > 0, neuron_ids, 0), cut_counts)
