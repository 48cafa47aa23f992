"""Which neurons stay on at inference: TopK or JumpReLU; a token's choice never depends on another token.

TopK: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 2. JumpReLU: Rajamanoharan et al. 2024,
"Jumping ahead", eq. 4; with threshold 0 it is ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.codes import TokenCodes

__all__ = ["JumpReLU", "Selection", "TopK", "select"]


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
    neuron_count = pre_activations.shape[-1]
    match selection:
        case TopK(k=k):
            rectified = pre_activations.clamp_min(0)
            values, neuron_ids = _largest(rectified, min(k, neuron_count))
            cut_counts = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        case JumpReLU(threshold=threshold):
            rectified = torch.where(pre_activations > threshold.clamp_min(0), pre_activations, 0)
            values, neuron_ids = _largest(rectified, min(limit, neuron_count))
            cut_counts = (rectified > 0).sum(-1) - (values > 0).sum(-1)
        case _:
            assert_never(selection)
    return TokenCodes(values, torch.where(values > 0, neuron_ids, 0), cut_counts)


def _largest(rectified: Float[Tensor, "tokens neurons"], width: int) -> tuple[Float[Tensor, "tokens width"], Tensor]:
    # torch.topk breaks ties in no stated order. One value more than asked shows whether the last place is tied.
    neuron_count = rectified.shape[-1]
    values, neuron_ids = torch.topk(rectified, min(width + 1, neuron_count), dim=-1)
    if neuron_count > width:
        tied = (values[:, width - 1] == values[:, width]) & (values[:, width] > 0)
        values, neuron_ids = values[:, :width], neuron_ids[:, :width]
        if bool(tied.any()):
            order = torch.sort(rectified[tied], dim=-1, descending=True, stable=True)
            values, neuron_ids = values.clone(), neuron_ids.clone()
            values[tied], neuron_ids[tied] = order.values[:, :width], order.indices[:, :width]
    by_neuron = torch.argsort(neuron_ids, dim=-1)
    values, neuron_ids = values.gather(-1, by_neuron), neuron_ids.gather(-1, by_neuron)
    by_value = torch.argsort(values, dim=-1, descending=True, stable=True)
    return values.gather(-1, by_value), neuron_ids.gather(-1, by_value)
