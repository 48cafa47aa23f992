"""The co-activation neighbours of every neuron on disk: `neighbours/{ids,npmi,counts}.npy`.

    write_neighbours(folder, co_activation_neighbours(...))    # folder: the index being written
    Neighbours(folder).of(neuron_id)

Knows nothing of how they are found; see `index.co_activation`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from index.arrays import map_array
from index.co_activation import CoActivation
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged

__all__ = ["Neighbours", "write_neighbours"]

_FOLDER = "neighbours"


def write_neighbours(folder: Path, neighbours: CoActivation) -> None:
    """Write `folder`/neighbours."""
    target = folder / _FOLDER
    target.mkdir()
    save_array(target / "ids.npy", neighbours.ids)
    save_array(target / "npmi.npy", neighbours.npmi)
    save_array(target / "counts.npy", neighbours.counts)


class Neighbours:
    """Every neuron's co-activation neighbours, memory-mapped."""

    ids: Int32[np.ndarray, "neurons neighbours"]
    """Best first; -1 where a neuron has fewer."""
    npmi: Float32[np.ndarray, "neurons neighbours"]
    """Normalised PMI with each; 0 where a neuron has fewer."""
    counts: Int64[np.ndarray, "neurons neighbours"]
    """Images on which both fire; 0 where a neuron has fewer."""

    def __init__(self, folder: Path) -> None:
        """Map `folder`/neighbours.

        Raises:
            ArtefactDamaged: the arrays do not fit together.
        """
        source = folder / _FOLDER
        self.ids = map_array(source / "ids.npy", np.int32, 2)
        self.npmi = map_array(source / "npmi.npy", np.float32, 2)
        self.counts = map_array(source / "counts.npy", np.int64, 2)
        if not self.ids.shape == self.npmi.shape == self.counts.shape:
            raise ArtefactDamaged(
                f"{source}: ids.npy is {self.ids.shape}, npmi.npy {self.npmi.shape}, counts.npy {self.counts.shape}: "
                "build the index again"
            )

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return len(self.ids)

    def of(self, neuron_id: int) -> list[tuple[int, float, int]]:
        """Return (neuron id, normalised PMI, images on which both fire) of a neuron's neighbours, best first."""
        known = int((self.ids[neuron_id] >= 0).sum())
        ids, npmi, counts = (array[neuron_id, :known] for array in (self.ids, self.npmi, self.counts))
        return [(int(ids[place]), float(npmi[place]), int(counts[place])) for place in range(known)]
