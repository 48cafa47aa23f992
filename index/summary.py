"""The index at a glance, measured once when it is built; `python -m index show` and the service read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from index.effort import Approximation
from index.image_table import ImageTable
from index.neuron_table import NeuronTable
from index.shards import Shards
from phosphene.errors import ArtefactDamaged
from phosphene.manifest import canonical_json

__all__ = ["Summary", "read_summary", "write_summary"]

_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures over the whole index."""

    row_count: int
    """Rows of the corpus."""
    image_count: int
    """Rows that were indexed."""
    quarantined_count: int
    """Rows that could not be used."""
    neuron_count: int
    """Neurons of the sparse autoencoder."""
    alive_count: int
    """Neurons that fire on some image."""
    mean_l0: float
    """Mean number of neurons per image code."""
    mean_fvu: float
    """Mean over images of the residual's share that the code does not explain."""
    cut_image_count: int
    """Images whose code was cut at a code limit."""
    similar_recall: float
    """Share of the ten nearest codes that the search for similar images finds, over a sample of rows; 1 if exact."""
    left_out_neuron_ids: tuple[int, ...]
    """Dense neurons, which similarity leaves out, ascending."""
    has_labels: bool
    """Whether a row has a label."""
    has_captions: bool
    """Whether a row has a caption."""
    approximations: Mapping[str, Approximation] = field(default_factory=dict)
    """How far the searches that are approximate look, and what they find: of `code`, `residual` and `text`."""


def write_summary(
    folder: Path,
    images: ImageTable,
    shards: Shards,
    neurons: NeuronTable,
    *,
    left_out_neuron_ids: Sequence[int],
    approximations: Mapping[str, Approximation],
) -> Summary:
    """Measure the index and write `summary.json`."""
    image_count = int(images.readable.sum())
    fvus = [fvu for part in images.columns("fvu") for fvu in part if fvu is not None]
    reasons = sum(reason is not None for part in images.columns("quarantine_reason") for reason in part)
    if image_count + reasons != images.row_count:
        raise ArtefactDamaged(
            f"{image_count} images are indexed and {reasons} quarantined, of {images.row_count} rows: build it again"
        )
    summary = Summary(
        row_count=images.row_count,
        image_count=image_count,
        quarantined_count=reasons,
        neuron_count=neurons.neuron_count,
        alive_count=int((neurons.firing_count > 0).sum()),
        mean_l0=shards.entry_count / image_count,
        mean_fvu=float(np.mean(fvus)),
        cut_image_count=sum(int((shard.codes.cut_counts > 0).sum()) for shard in shards),
        similar_recall=approximations["code"].recall if "code" in approximations else 1.0,
        left_out_neuron_ids=tuple(left_out_neuron_ids),
        has_labels=any(any(part) for part in images.columns("label")),
        has_captions=any(any(part) for part in images.columns("caption")),
        approximations=dict(approximations),
    )
    (folder / _FILE).write_bytes(canonical_json(asdict(summary)))
    return summary


def read_summary(folder: Path) -> Summary:
    """Read `summary.json`, whose digest has been checked.

    Raises:
        ArtefactDamaged: it is not what it should be.
    """
    try:
        record = json.loads((folder / _FILE).read_bytes())
        approximations = {name: Approximation(**found) for name, found in record["approximations"].items()}
        left_out = tuple(record["left_out_neuron_ids"])
        return Summary(**record | {"left_out_neuron_ids": left_out, "approximations": approximations})
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ArtefactDamaged(f"{folder / _FILE} is no summary ({error}): build the index again") from error
