"""The index at a glance, measured once when it is built; `python -m index show` and the service read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from index.codes_store import CodesStore
from index.image_table import ImageTable
from index.neuron_table import NeuronTable
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
    sketch_recall: float
    """Share of the ten nearest codes that the sketch index finds, over a sample of rows."""
    has_labels: bool
    """Whether a row has a label."""
    has_captions: bool
    """Whether a row has a caption."""


def write_summary(folder: Path, images: ImageTable, codes: CodesStore, neurons: NeuronTable, *, recall: float) -> None:
    """Measure the index and write `summary.json`."""
    readable = images.readable
    fvus = [images.fvu(int(row)) for row in np.flatnonzero(readable)]
    summary = Summary(
        row_count=images.row_count,
        image_count=int(readable.sum()),
        quarantined_count=int((~readable).sum()),
        neuron_count=neurons.neuron_count,
        alive_count=int((neurons.firing_count > 0).sum()),
        mean_l0=codes.entry_count / int(readable.sum()),
        mean_fvu=float(np.mean([fvu for fvu in fvus if fvu is not None])),
        cut_image_count=int((codes.cut_counts > 0).sum()),
        sketch_recall=recall,
        has_labels=any(images.column("label")),
        has_captions=any(images.column("caption")),
    )
    (folder / _FILE).write_bytes(canonical_json(asdict(summary)))


def read_summary(folder: Path) -> Summary:
    """Read `summary.json`, whose digest has been checked.

    Raises:
        ArtefactDamaged: it is not what it should be.
    """
    try:
        return Summary(**json.loads((folder / _FILE).read_bytes()))
    except (OSError, TypeError, ValueError) as error:
        raise ArtefactDamaged(f"{folder / _FILE} is no summary ({error}): build the index again") from error
