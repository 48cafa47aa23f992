"""Which neurons fire on a larger share of one index's images than of another's, of one bundle.

The ratio of two densities is given with its confidence interval (Katz et al. 1978, "Obtaining confidence intervals for
the risk ratio in cohort studies", with half an image added to each count, Walter 1975). With thousands of neurons some
differ by chance: the interval is so wide that chance moves any neuron of the list in one pair of indexes out of twenty
(Bonferroni). Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from index.reader import IndexReader
from index.terminal_text import printable
from phosphene.errors import ArtefactMismatch

__all__ = ["NeuronShift", "density_ratios", "describe_shifts", "neurons_firing_more"]

_FALSE_SHARE = 0.05
_EXEMPLAR_COUNT = 3


@dataclass(frozen=True, kw_only=True)
class NeuronShift:
    """A neuron that fires more often in the second index."""

    neuron_id: int
    """The neuron."""
    densities: tuple[float, float]
    """Share of the readable images of each index on which it fires."""
    ratio: float
    """The second density over the first."""
    bounds: tuple[float, float]
    """Confidence interval of the ratio."""
    exemplar_uris: tuple[str, ...]
    """The images of the second index that excite it most."""
    name: str | None
    """Its best name in the second index, else in the first; None: it has none."""


def neurons_firing_more(first: IndexReader, second: IndexReader) -> list[NeuronShift]:
    """Return the neurons whose density in `second` is larger beyond chance, by descending lower bound of the ratio.

    Raises:
        ArtefactMismatch: the indexes are of different bundles.
    """
    if first.code_id != second.code_id:
        raise ArtefactMismatch(
            f"the indexes have the code_ids {first.code_id} and {second.code_id}: their neurons are not the same; "
            "compare indexes of one bundle"
        )
    ratios, low, high = density_ratios(first.firing_counts, first.image_count, second.firing_counts, second.image_count)
    chosen = np.flatnonzero(low > 1)
    shifts: list[NeuronShift] = []
    for neuron_id in chosen[np.lexsort((chosen, -low[chosen]))].tolist():
        rows = first.neuron(neuron_id), second.neuron(neuron_id)
        names = [*rows[1].names, *rows[0].names]
        exemplars = second.images_by_neuron(neuron_id, _EXEMPLAR_COUNT)
        shifts.append(
            NeuronShift(
                neuron_id=neuron_id,
                densities=(rows[0].density, rows[1].density),
                ratio=float(ratios[neuron_id]),
                bounds=(float(low[neuron_id]), float(high[neuron_id])),
                exemplar_uris=tuple(second.image(exemplar.row).uri for exemplar in exemplars),
                name=names[0].name if names else None,
            )
        )
    return shifts


def density_ratios(
    first_counts: Int64[np.ndarray, " neurons"],
    first_images: int,
    second_counts: Int64[np.ndarray, " neurons"],
    second_images: int,
) -> tuple[Float64[np.ndarray, " neurons"], Float64[np.ndarray, " neurons"], Float64[np.ndarray, " neurons"]]:
    """Return for each neuron the ratio of densities, second over first, and its lower and upper bound.

    Args:
        first_counts: images of the first index on which each neuron fires.
        first_images: its readable images.
        second_counts: the same of the second.
        second_images: its readable images.
    """
    deviations = NormalDist().inv_cdf(1 - _FALSE_SHARE / (2 * max(1, len(first_counts))))
    hits, other_hits = second_counts + 0.5, first_counts + 0.5
    images, other_images = second_images + 0.5, first_images + 0.5
    middle = np.log(hits / images) - np.log(other_hits / other_images)
    error = np.sqrt(np.maximum(0.0, 1 / hits - 1 / images + 1 / other_hits - 1 / other_images))
    return np.exp(middle), np.exp(middle - deviations * error), np.exp(middle + deviations * error)


def describe_shifts(shifts: list[NeuronShift], *, count: int) -> RenderableType:
    """Return a table of the first `count` for a person."""
    table = Table(title=f"{len(shifts)} neurons fire more in the second index", title_justify="left", box=None)
    for heading in ("neuron", "density", "in the second", "ratio", "at least", "at most"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("name", overflow="fold")
    table.add_column("exemplars in the second", overflow="fold")
    for shift in shifts[:count]:
        table.add_row(
            str(shift.neuron_id),
            *(f"{density:.5f}" for density in shift.densities),
            f"{shift.ratio:.3g}",
            *(f"{bound:.3g}" for bound in shift.bounds),
            Text(printable(shift.name or "-")),
            Text(printable(", ".join(shift.exemplar_uris))),
        )
    return table
