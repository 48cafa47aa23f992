"""What an index says of itself: ids, counts and recalls, from its manifest and its summary; reads nothing else."""

from __future__ import annotations

from typing import Any

from index.flags import Flags
from index.names import NeuronNames
from index.statistics import QUANTILE_PROBABILITIES
from index.summary import Summary
from index.tombstones import Tombstones
from phosphene.manifest import Manifest

__all__ = ["IndexFacts"]


class IndexFacts:
    """Facts of an index and of what lies beside it; they outlive its files."""

    summary: Summary
    """Figures over the whole index."""
    names_id: str
    """Id of the names that neurons go by; empty where they are the index's own."""

    def __init__(
        self,
        manifest: Manifest,
        summary: Summary,
        tombstones: Tombstones | None = None,
        flags: Flags | None = None,
        names: NeuronNames | None = None,
    ) -> None:
        """Keep what says it.

        Args:
            manifest: of the index.
            summary: of the index.
            tombstones: what its answers honour.
            flags: what is sensitive.
            names: what neurons are called, where not as the index says.
        """
        self._manifest, self.summary = manifest, summary
        self._tombstones, self._flags = tombstones, flags
        self.names_id = "" if names is None else names.id

    @property
    def id(self) -> str:
        """Digest of the contents."""
        return self._manifest.id

    @property
    def plan_id(self) -> str:
        """Digest of what the index was built from, and how."""
        return str(self._manifest.config["plan_id"])

    @property
    def code_id(self) -> str:
        """What decides the codes of the bundle it was built with."""
        return str(self._manifest.config["plan"]["code_id"])

    @property
    def bundle_id(self) -> str:
        """Id of the bundle it was built with."""
        return self._manifest.inputs["bundle"]

    @property
    def created_by(self) -> str:
        """Program and version that built it."""
        return self._manifest.created_by

    @property
    def config(self) -> dict[str, Any]:
        """The plan, as JSON."""
        config: dict[str, Any] = self._manifest.config["plan"]
        return config

    @property
    def tombstones_id(self) -> str:
        """Id of the tombstones that its answers honour; empty where there are none."""
        return "" if self._tombstones is None else self._tombstones.id

    @property
    def take_down_ids(self) -> frozenset[str]:
        """Ids of all tombstones that no answer shows an image of, those that a compaction honoured included."""
        return frozenset({self.tombstones_id, self._manifest.inputs.get("tombstones", "")}) - {""}

    @property
    def flags_id(self) -> str:
        """Id of the flags that say what is sensitive; empty where there are none."""
        return "" if self._flags is None else self._flags.id

    @property
    def row_count(self) -> int:
        """Rows of the corpus, quarantined ones included; a row is smaller than this."""
        return self.summary.row_count

    @property
    def image_count(self) -> int:
        """Images that were indexed: rows that are not quarantined."""
        return self.summary.image_count

    @property
    def quarantined_count(self) -> int:
        """Rows that could not be used."""
        return self.summary.quarantined_count

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return self.summary.neuron_count

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Probabilities of `NeuronRow.quantiles`, ascending."""
        return QUANTILE_PROBABILITIES

    @property
    def left_out_neuron_ids(self) -> tuple[int, ...]:
        """Dense neurons, which do not count in `similar_images`, ascending."""
        return self.summary.left_out_neuron_ids

    @property
    def has_labels(self) -> bool:
        """Whether an image has a label."""
        return self.summary.has_labels

    @property
    def similarity_is_exact(self) -> bool:
        """Whether its own similar images equal brute force; else they are `summary.similar_recall` of that."""
        return "code" not in self.summary.approximations
