"""What is active in a batch, sorted by bag and by neuron; sizes are known beforehand, so that nothing waits.

A bag is one reconstruction of one row: a row has one per nested autoencoder, and one more by its dead neurons. A slot
is an active neuron in a bag. Slots that stand for nothing follow the others of their bag, which so have the same places
however many there are. Knows nothing of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.active import Chosen

__all__ = ["Bags", "Layout", "Slots"]


class Bags(NamedTuple):
    """Where each bag's slots stand."""

    starts: Int[Tensor, " bags"]
    """Its first slot."""
    ends: Int[Tensor, " bags"]
    """The slot after its last that is active."""


class Slots(NamedTuple):
    """Active neurons, bag after bag."""

    values: Float[Tensor, " slots"]
    """Activations; 0 stands for nothing."""
    neuron_ids: Int[Tensor, " slots"]
    """The neuron of each."""
    bags: Int[Tensor, " slots"]
    """The bag of each."""

    @property
    def is_active(self) -> Bool[Tensor, " slots"]:
        """Which stand for something."""
        return self.values > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The bags of a batch: every row's nested autoencoders, row after row, then every row's dead neurons."""

    row_count: int
    """Rows of the batch."""
    neuron_count: int
    """Neurons of the autoencoder."""
    sizes: Int[Tensor, " nested"]
    """Neurons of each nested autoencoder, rising; the last is the whole."""

    @property
    def level_count(self) -> int:
        """Nested autoencoders."""
        return len(self.sizes)

    @property
    def main_count(self) -> int:
        """Bags of the autoencoder itself, before those of dead neurons."""
        return self.row_count * self.level_count

    def slots(self, active: Chosen, dead: Chosen | None) -> tuple[Slots, Bags]:
        """Put what was chosen into bags.

        Args:
            active: of the autoencoder; a neuron goes to the smallest nested autoencoder that holds it.
            dead: strongest dead neurons of each row; None where none is dead.
        """
        rows, neuron_ids = active.places // self.neuron_count, active.places % self.neuron_count
        bags = rows * self.level_count + torch.bucketize(neuron_ids, self.sizes, right=True)
        values, bag_count = active.values, self.main_count
        if dead is not None:
            values = torch.cat([values, dead.values])
            neuron_ids = torch.cat([neuron_ids, dead.places % self.neuron_count])
            bags = torch.cat([bags, self.main_count + dead.places // self.neuron_count])
            bag_count += self.row_count
        # Within a bag by neuron; what stands for nothing counts as one neuron beyond the last.
        stride = self.neuron_count + 1
        keys = bags * stride + torch.where(values > 0, neuron_ids, self.neuron_count)
        keys, order = keys.sort()
        firsts = torch.arange(bag_count, device=keys.device) * stride
        slots = Slots(values[order].relu(), neuron_ids[order], bags[order])
        return slots, _bags(keys, firsts, firsts + self.neuron_count)

    def rows(self, bags: Int[Tensor, " slots"]) -> Int[Tensor, " slots"]:
        """The row of each of these bags."""
        return torch.where(bags < self.main_count, bags // self.level_count, bags - self.main_count)

    def by_neuron(self, slots: Slots) -> tuple[Int[Tensor, " slots"], Bags]:
        """The order of the slots by neuron, bags rising, and where each neuron's stand."""
        # What stands for nothing stays with its neuron: `embedding_bag` goes over it, and in one bag it would be long.
        keys, order = (2 * slots.neuron_ids + ~slots.is_active).sort(stable=True)
        firsts = torch.arange(0, 2 * self.neuron_count, 2, device=keys.device)
        return order, _bags(keys, firsts, firsts + 1)


def _bags(keys: Tensor, firsts: Tensor, lasts: Tensor) -> Bags:
    return Bags(torch.searchsorted(keys, firsts), torch.searchsorted(keys, lasts))
