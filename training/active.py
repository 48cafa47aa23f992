"""The active neurons of a batch as ragged rows, and the selections that make them, in plain torch on any device.

Every result has a size that is known beforehand, so that nothing waits for the device. Knows nothing of losses or data.
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


class Chosen(NamedTuple):
    """What a selection chose, in no particular order."""

    values: Float[Tensor, " slots"]
    """Pre-activations; what is not positive stands for nothing."""
    places: Int[Tensor, " slots"]
    """row x neurons + neuron of each."""


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
    row_count, neuron_count = pre_activations.shape
    choice = Choice(variant, row_count, neuron_count, ranks)
    choice.add(pre_activations)
    values, places = choice.chosen()
    places, order = places.sort()
    firsts = torch.arange(row_count, device=places.device) * neuron_count
    return Active(values[order].relu(), places % neuron_count, torch.searchsorted(places, firsts))


def decode_active(active: Active, directions: Float[Tensor, "neurons d"]) -> Float[Tensor, "rows d"]:
    """The sum of value x direction over each row's active neurons, without the decoder bias."""
    return torch.nn.functional.embedding_bag(
        active.neuron_ids, directions, active.row_starts, mode="sum", per_sample_weights=active.values
    )


class Choice:
    """The training rule over one batch whose pre-activations come a block of rows at a time."""

    def __init__(self, variant: SparseVariant, row_count: int, neuron_count: int, ranks: Ranks = ALONE) -> None:
        """Begin with no rows.

        Args:
            variant: the rule.
            row_count: rows of this process's part of the batch.
            neuron_count: neurons of the autoencoder.
            ranks: who else has a part of the batch, equally large.
        """
        self._variant = variant
        self._neuron_count = neuron_count
        self._ranks = ranks
        self._wanted = variant.k * row_count * ranks.count
        self._rows_seen = 0
        self._chosen: list[Chosen] = []

    def add(self, pre_activations: Float[Tensor, "block neurons"]) -> None:
        """Look at the next rows."""
        first = self._rows_seen * self._neuron_count
        self._rows_seen += len(pre_activations)
        match self._variant:
            case TopKTraining(k=k):
                values, neuron_ids = pre_activations.topk(k, dim=1, sorted=False)
                starts = torch.arange(len(values), device=values.device) * self._neuron_count + first
                self._chosen.append(Chosen(values.flatten(), (starts[:, None] + neuron_ids).flatten()))
            case BatchTopKTraining() | MatryoshkaTraining():
                values, places = _largest(pre_activations.flatten(), self._wanted)
                best = [*self._chosen, Chosen(values, places + first)]
                self._chosen = [_strongest(_joined(best), self._wanted)]
            case _:
                assert_never(self._variant)

    def chosen(self) -> Chosen:
        """What is active in the rows seen; as many slots as rows and rule say, whatever the values."""
        chosen = _joined(self._chosen)
        if isinstance(self._variant, TopKTraining) or self._ranks.count == 1:
            return chosen
        return self._strongest_of_all_ranks(chosen)

    def _strongest_of_all_ranks(self, own: Chosen) -> Chosen:
        """Of equal ones the first stay, in the order of ranks."""
        places, order = own.places.sort()
        values = own.values[order]
        everyones = self._ranks.gather_tensor(values.detach().float()).view(self._ranks.count, -1)
        wanted = min(self._wanted, everyones.numel())
        threshold = _largest(everyones.flatten(), wanted).values.min()
        tie_counts = (everyones == threshold).sum(dim=1)
        ties = wanted - (everyones > threshold).sum() - tie_counts[: self._ranks.rank].sum()
        is_tie = values == threshold
        is_kept = (values > threshold) | (is_tie & (is_tie.cumsum(dim=0) <= ties))
        return Chosen(torch.where(is_kept, values, 0), places)


def _joined(parts: list[Chosen]) -> Chosen:
    return parts[0] if len(parts) == 1 else Chosen(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _strongest(chosen: Chosen, count: int) -> Chosen:
    if len(chosen.values) <= count:
        return chosen
    values, slots = _largest(chosen.values, count)
    return Chosen(values, chosen.places[slots])


def _largest(values: Float[Tensor, " values"], count: int) -> torch.return_types.topk:
    return values.topk(min(count, len(values)), sorted=False)
