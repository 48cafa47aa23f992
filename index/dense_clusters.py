"""Which neurons fire so often that they say little of an image, and which of those fire together.

A neuron is **dense** where it fires on more than max(10 %, 8 x L0 / neurons) of the images: eight times what each
neuron would have if all fired equally often, and never less than a tenth. Dense neurons are in nearly every code; in a
similarity they add a constant and cost the longest postings.

Dense neurons are not noise: many carry a few directions that all images share, and come in groups that fire together
(Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; Sun et al. 2025, "Dense SAE Latents Are Features, Not
Bugs"). The **dense cluster** is the largest set of dense neurons each of which has more than half of its co-activation
(the sum of the positive normalised PMIs with its stored neighbours) within the set. Knows nothing of files.

    dense = dense_neurons(density, mean_l0=summary.mean_l0)
    left_out = left_out_of_similarity(density, dense)
    cluster = dense_cluster(dense, neighbours.ids, neighbours.npmi)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

__all__ = ["dense_cluster", "dense_density", "dense_neurons", "left_out_of_similarity"]

_LEAST_DENSITY = 0.1
_TIMES_EVEN = 8.0


def dense_density(*, mean_l0: float, neuron_count: int) -> float:
    """Return the share of the images above which a neuron is dense.

    Args:
        mean_l0: neurons that fire on an image, on average.
        neuron_count: neurons of the sparse autoencoder, dead ones included.
    """
    return max(_LEAST_DENSITY, _TIMES_EVEN * mean_l0 / neuron_count)


def dense_neurons(density: Float64[np.ndarray, " neurons"], *, mean_l0: float) -> Bool[np.ndarray, " neurons"]:
    """Tell which neurons are dense.

    Args:
        density: share of the readable images on which each neuron fires.
        mean_l0: neurons that fire on an image, on average.
    """
    dense: Bool[np.ndarray, " neurons"] = density > dense_density(mean_l0=mean_l0, neuron_count=max(1, len(density)))
    return dense


def left_out_of_similarity(
    density: Float64[np.ndarray, " neurons"], dense: Bool[np.ndarray, " neurons"]
) -> Bool[np.ndarray, " neurons"]:
    """Tell which neurons similarity leaves out: the dense ones, but never every neuron that fires.

    Where all that fire are dense, the one that fires least stays (ties: the lowest id), so that codes can be compared.
    """
    left_out = dense.copy()
    alive = np.flatnonzero(density > 0)
    if len(alive) and bool(dense[alive].all()):
        left_out[alive[np.argmin(density[alive])]] = False
    return left_out


def dense_cluster(
    dense: Bool[np.ndarray, " neurons"],
    ids: Int32[np.ndarray, "neurons neighbours"],
    npmi: Float32[np.ndarray, "neurons neighbours"],
) -> Bool[np.ndarray, " neurons"]:
    """Tell which neurons belong to the dense cluster.

    Args:
        dense: which neurons are dense.
        ids: each neuron's co-activation neighbours; -1 where there are fewer.
        npmi: the normalised PMI with each, greater than 0; 0 where there are fewer.
    """
    known = ids >= 0
    weights = np.where(known, npmi, 0.0).astype(np.float64)
    totals = weights.sum(axis=1)
    cluster = dense.copy()
    while True:
        # Who leaves takes support from others; what is left in the end supports itself.
        within = (weights * cluster[np.where(known, ids, 0)]).sum(axis=1)
        smaller = cluster & (within > totals / 2)
        if bool((smaller == cluster).all()):
            return cluster
        cluster = smaller
