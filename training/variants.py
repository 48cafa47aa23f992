"""Which neurons stay on while training, and which rule each variant ships with; knows nothing of losses or data.

TopK: Gao et al. (2024). BatchTopK: Bussmann et al., "BatchTopK sparse autoencoders" (2024): the k x rows largest
activations of a whole batch stay on, so that rows share their budget. Since a published code never depends on other
images, BatchTopK ships as JumpReLU with one calibrated threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phosphene.selection import JumpReLU, TopK


class VariantName(StrEnum):
    """The names on the command line."""

    TOPK = "topk"
    BATCHTOPK = "batchtopk"


@dataclass(frozen=True, kw_only=True)
class TopKTraining:
    """The k largest activations of each row."""

    k: int
    """Active neurons per row."""

    def for_inference(self) -> TopK:
        """The same rule: it never looks at other rows."""
        return TopK(k=self.k)


@dataclass(frozen=True, kw_only=True)
class BatchTopKTraining:
    """The k x rows largest activations of the batch."""

    k: int
    """Active neurons per row, on average over the batch."""

    def for_inference(self, threshold: Float[Tensor, " neurons"]) -> JumpReLU:
        """The row-wise rule with the calibrated threshold of each neuron, in units of the pre-activation."""
        return JumpReLU(threshold=threshold)


Variant = TopKTraining | BatchTopKTraining


class Active(NamedTuple):
    """The active neurons of a batch as ragged rows (the layout of `torch.nn.functional.embedding_bag`)."""

    values: Float[Tensor, " active"]
    """Activations >= 0, row after row; gradients flow through them."""
    neuron_ids: Int[Tensor, " active"]
    """The neuron of each value."""
    row_starts: Int[Tensor, " rows"]
    """Where each row begins in `values`."""


def make_variant(name: VariantName, k: int) -> Variant:
    """The variant of this name."""
    match name:
        case VariantName.TOPK:
            return TopKTraining(k=k)
        case VariantName.BATCHTOPK:
            return BatchTopKTraining(k=k)
        case _:
            assert_never(name)


def choose_active(variant: Variant, pre_activations: Float[Tensor, "rows neurons"]) -> Active:
    """Apply the training rule to one batch.

    Args:
        variant: the rule.
        pre_activations: encoder outputs before any non-linearity.

    Returns:
        The chosen activations after ReLU: a chosen negative pre-activation counts as zero and takes no gradient.
    """
    match variant:
        case TopKTraining():
            return strongest(pre_activations, variant.k)
        case BatchTopKTraining():
            return _strongest_of_batch(pre_activations, variant.k)
        case _:
            assert_never(variant)


def strongest(pre_activations: Float[Tensor, "rows neurons"], count: int) -> Active:
    """The `count` largest activations of each row."""
    values, neuron_ids = pre_activations.topk(count, dim=1, sorted=False)
    row_starts = torch.arange(0, values.numel(), count, device=values.device)
    return Active(values.relu().flatten(), neuron_ids.flatten(), row_starts)


def decode_active(active: Active, directions: Float[Tensor, "neurons d"]) -> Float[Tensor, "rows d"]:
    """The sum of value x direction over each row's active neurons, without the decoder bias."""
    return torch.nn.functional.embedding_bag(
        active.neuron_ids, directions, active.row_starts, mode="sum", per_sample_weights=active.values
    )


def _strongest_of_batch(pre_activations: Float[Tensor, "rows neurons"], k: int) -> Active:
    row_count, neuron_count = pre_activations.shape
    flat = pre_activations.flatten()
    chosen = flat.detach().topk(k * row_count, sorted=False).indices.sort().values
    counts = torch.bincount(chosen // neuron_count, minlength=row_count)
    return Active(flat[chosen].relu(), chosen % neuron_count, counts.cumsum(0) - counts)
