"""How activations get from the encoder to the training: kept on disk, or streamed; knows nothing of autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.activations import Activations
from training.harvest import HarvestPlan, harvest_sites
from training.progress import Progress
from training.source import ActivationSource
from training.streaming import DEFAULT_BUFFER_VALUES, StreamedActivations


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How activations are read by the training; no part of a harvest, so that one harvest serves many."""

    is_streamed: bool = False
    """Whether the encoder runs anew in every epoch instead of leaving a copy on disk."""
    leaves_out_artefacts: bool = False
    """Whether high-norm artefact tokens are used nowhere; see `artefact_tokens.py`."""

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


def open_source(
    plan: HarvestPlan, reading: ReadingSettings, *, seed: int, folder: Path, progress: Progress
) -> ActivationSource:
    """Harvest what is missing, or get ready to stream; see `open_sources`."""
    (source,) = open_sources([plan], reading, seed=seed, folder=folder, progress=progress)
    return source


def open_sources(
    plans: Sequence[HarvestPlan], reading: ReadingSettings, *, seed: int, folder: Path, progress: Progress
) -> list[ActivationSource]:
    """Harvest what is missing of several sites in one pass over the images, or get ready to stream each.

    Args:
        plans: what is read off the encoder.
        reading: how.
        seed: decides which images are held out, and the order of the batches.
        folder: holds one artefact per plan; not touched when streaming.
        progress: where to report.

    Raises:
        PhospheneError: as `harvest_sites`, `Activations` and `StreamedActivations`.
    """
    if reading.is_streamed:
        return [
            StreamedActivations(
                plan,
                progress,
                seed=seed,
                leaves_out_artefacts=reading.leaves_out_artefacts,
                buffer_values=DEFAULT_BUFFER_VALUES,
            )
            for plan in plans
        ]
    paths = harvest_sites(plans, folder, progress)
    return [Activations(path, seed=seed, leaves_out_artefacts=reading.leaves_out_artefacts) for path in paths]
