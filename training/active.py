"""The active neurons of a batch as ragged rows, and the selections that make them, in plain torch on any device.

What faster kernels must equal. Knows nothing of losses or data.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.ranks import ALONE, Ranks
from training.variants import BatchTopKTraining, MatryoshkaTraining, SparseVariant, TopKTraining


class Active(NamedTuple):
    """The active neurons of a batch as ragged rows (the layout of `torch.nn.functional.embedding_bag`)."""

    values: Float[Tensor, " active"]
    """Activations >= 0, row after row; gradients flow through them."""
    neuron_ids: Int[Tensor, " active"]
    """The neuron of each value."""
    row_starts: Int[Tensor, " rows"]
    """Where each row begins in `values`."""


def choose_active(
    variant: SparseVariant, pre_activations: Float[Tensor, "rows neurons"], ranks: Ranks = ALONE
) -> Active:
    """Apply the training rule to one batch.

    Args:
        variant: the rule.
        pre_activations: encoder outputs before any non-linearity.
        ranks: who else has a part of the batch, equally large.

    Returns:
        The chosen activations after ReLU: a chosen negative pre-activation counts as zero and takes no gradient.
    """
    match variant:
        case TopKTraining(k=k):
            return strongest(pre_activations, k)
        case BatchTopKTraining(k=k) | MatryoshkaTraining(k=k):
            return _strongest_of_batch(pre_activations, k, ranks)
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


def _strongest_of_batch(pre_activations: Float[Tensor, "rows neurons"], k: int, ranks: Ranks) -> Active:
    row_count, neuron_count = pre_activations.shape
    flat = pre_activations.flatten()
    wanted = k * row_count * ranks.count
    largest = flat.detach().topk(min(wanted, len(flat)), sorted=False)
    chosen = largest.indices
    if ranks.count > 1:
        everyones = ranks.gather_tensor(largest.values)
        threshold = everyones.topk(wanted, sorted=False).values.min()
        chosen = chosen[largest.values >= threshold]
    chosen = chosen.sort().values
    counts = torch.bincount(chosen // neuron_count, minlength=row_count)
    return Active(flat[chosen].relu(), chosen % neuron_count, counts.cumsum(0) - counts)
