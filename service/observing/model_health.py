"""Whether the model still sees what its index was built from: figures over a window of recent live codes.

Pure numbers over codes: knows nothing of Prometheus, gRPC or engines.

Drift is the total variation between two distributions of firings over neurons: the live window's, and the index's. Few
images differ from many by chance alone, so the distance expected without any drift is subtracted: each neuron's
firings are binomial, the mean absolute deviation of a binomial is known in closed form (De Moivre; Diaconis and Zabell
1991, "Closed form summation for classical distributions"), and the index is a sample too, so both counts enter as one
sample of n·m/(n + m) images. The remainder is scaled so that 0 is what chance gives and 1 is no neuron in common.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from math import fsum
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int

from phosphene.codes import ImageCode

__all__ = ["DensitySource", "IndexReference", "ModelFigures", "ModelHealth", "drift_floor", "index_reference"]


@runtime_checkable
class NeuronDensity(Protocol):
    """What is read of a neuron's row."""

    @property
    def density(self) -> float:
        """Share of the index's images on which it fires."""


@runtime_checkable
class DensitySource(Protocol):
    """What is read of an index."""

    @property
    def image_count(self) -> int:
        """Images that were indexed."""

    @property
    def neuron_count(self) -> int:
        """Neurons of the SAE."""

    def neuron(self, neuron_id: int) -> NeuronDensity:
        """A neuron's figures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexReference:
    """What the live codes are compared with."""

    densities: Float64[np.ndarray, " neurons"]
    """Share of the index's images on which each neuron fires."""
    image_count: int
    """Images of the index."""


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """The window's figures; None where there is nothing to measure them from."""

    image_count: int
    """Images in the window."""
    l0_neurons: float | None
    """Mean number of active neurons."""
    index_l0_neurons: float | None
    """The same over the index."""
    fvu_ratio: float | None
    """Mean fraction of variance unexplained, over the images of the window that asked for fidelity."""
    drift_ratio: float | None
    """Density drift against the index beyond what chance explains, in [0, 1]."""
    drift_floor_ratio: float | None
    """Total variation that chance alone explains at this window's size."""
    nonfinite_count: int
    """Images since the start whose code or error was not a number."""


class ModelHealth:
    """A window over the live codes of one bundle; safe to use from several threads."""

    def __init__(self, *, reference: IndexReference | None, window_images: int = 2000, drift_images: int = 200) -> None:
        """Begin with an empty window.

        Args:
            reference: what the index holds; None where the bundle has none, and then drift is not measured.
            window_images: images that the window holds.
            drift_images: images from which on drift is told; with fewer it would be noise.
        """
        self._reference = reference
        self._window_images = window_images
        self._drift_images = drift_images
        self._lock = threading.Lock()
        self._window: deque[tuple[Int[np.ndarray, " active"], float | None]] = deque()
        neuron_count = 0 if reference is None else len(reference.densities)
        self._firing_counts = np.zeros(neuron_count, np.int64)
        self._active_sum = 0
        self._nonfinite_count = 0

    def observe(self, code: ImageCode, fvu: float | None) -> None:
        """A live image has its code; `fvu` where fidelity was asked for.

        A code with a value that is not finite is counted and kept out of the window.
        """
        if not np.isfinite(code.values).all() or (fvu is not None and not np.isfinite(fvu)):
            self.nonfinite()
            return
        with self._lock:
            if len(self._window) == self._window_images:
                self._count(self._window.popleft()[0], sign=-1)
            self._window.append((code.neuron_ids, fvu))
            self._count(code.neuron_ids, sign=1)

    def nonfinite(self) -> None:
        """The engine met NaN or infinity on an image."""
        with self._lock:
            self._nonfinite_count += 1

    def figures(self) -> ModelFigures:
        """The figures now."""
        with self._lock:
            image_count, firing_counts = len(self._window), self._firing_counts.copy()
            active_sum, nonfinite_count = self._active_sum, self._nonfinite_count
            # Summed anew: from a running sum one extreme value would take the others' digits with it for good.
            fvus = [fvu for _, fvu in self._window if fvu is not None]
        reference = self._reference
        drift: float | None = None
        floor: float | None = None
        if reference is not None and image_count >= self._drift_images and active_sum and reference.densities.any():
            floor = drift_floor(reference, image_count)
            drift = _drift_beyond(floor, firing_counts, reference.densities)
        return ModelFigures(
            image_count=image_count,
            l0_neurons=active_sum / image_count if image_count else None,
            index_l0_neurons=None if reference is None else float(reference.densities.sum()),
            fvu_ratio=fsum(fvus) / len(fvus) if fvus else None,
            drift_ratio=drift,
            drift_floor_ratio=floor,
            nonfinite_count=nonfinite_count,
        )

    def _count(self, neuron_ids: Int[np.ndarray, " active"], *, sign: int) -> None:
        if self._reference is not None:
            # A code names each neuron at most once, so no index repeats.
            self._firing_counts[neuron_ids] += sign
        self._active_sum += sign * len(neuron_ids)


def index_reference(index: DensitySource) -> IndexReference:
    """Read the densities of an index, once, when it is opened; belongs in a worker thread."""
    densities = [index.neuron(neuron_id).density for neuron_id in range(index.neuron_count)]
    return IndexReference(densities=np.array(densities, np.float64), image_count=index.image_count)


def drift_floor(reference: IndexReference, image_count: int) -> float:
    """Total variation to expect between the index and `image_count` images of the same kind."""
    sample_count = max(round(image_count * reference.image_count / (image_count + reference.image_count)), 1)
    shares = reference.densities[(reference.densities > 0) & (reference.densities < 1)]
    deviation = _mean_absolute_deviations(sample_count, shares).sum() / sample_count
    return min(float(0.5 * deviation / reference.densities.sum()), 1.0)


def _drift_beyond(
    floor: float, firing_counts: Int[np.ndarray, " neurons"], densities: Float64[np.ndarray, " neurons"]
) -> float:
    distance = 0.5 * float(np.abs(firing_counts / firing_counts.sum() - densities / densities.sum()).sum())
    return max((distance - floor) / (1.0 - floor), 0.0) if floor < 1.0 else 0.0


def _mean_absolute_deviations(count: int, shares: Float64[np.ndarray, " some"]) -> Float64[np.ndarray, " some"]:
    """E|X - count·p| for X binomial: 2·v·C(count, v)·p^v·(1 - p)^(count - v + 1) with v = floor(count·p) + 1."""
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    above = np.minimum(np.floor(count * shares).astype(np.int64) + 1, count)
    log_choices = log_factorials[count] - log_factorials[above] - log_factorials[count - above]
    powers = above * np.log(shares) + (count - above + 1) * np.log1p(-shares)
    deviations: Float64[np.ndarray, " some"] = 2 * above * np.exp(log_choices + powers)
    return deviations
