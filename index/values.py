"""What the index answers with: plain frozen values, readable without the index; knows nothing of files or FAISS."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "ALL_NEURONS",
    "CodeMetric",
    "Exemplar",
    "ExemplarKind",
    "ImageRow",
    "NameSource",
    "NeuronFilter",
    "NeuronName",
    "NeuronOrder",
    "NeuronRow",
    "QdrantPlace",
    "SearchEngine",
    "SimilarImage",
]


class CodeMetric(StrEnum):
    """What the similarity of two codes is."""

    COSINE = "cosine"
    """Inner product over the norms of both codes; in (0, 1] but for rounding."""
    INNER_PRODUCT = "inner_product"
    """Sum over the shared neurons of the products of activations; above 0."""


class SearchEngine(StrEnum):
    """What finds images by their codes."""

    INDEX = "index"
    """The index itself."""
    QDRANT = "qdrant"
    """A Qdrant that holds its codes."""


class ExemplarKind(StrEnum):
    """How a neuron's exemplars were chosen."""

    TOP = "top"
    """The images that excite the neuron most, strongest first."""
    SPREAD = "spread"
    """Images that sample the range of the neuron's activations in even steps, strongest first."""


class NeuronOrder(StrEnum):
    """Order of a list of neurons; ties go by ascending neuron id."""

    NEURON_ID = "neuron_id"
    """Ascending."""
    DENSITY = "density"
    """Most often firing first."""
    MAXIMUM = "maximum"
    """Largest activation first."""
    MEAN = "mean"
    """Largest mean activation first."""
    LABEL_ENTROPY = "label_entropy"
    """Most selective first; neurons without the figure last."""
    NAME_SCORE = "name_score"
    """Best named first; unnamed neurons last."""
    MONOSEMANTICITY = "monosemanticity"
    """Those that show one thing first; neurons without the figure last."""


@dataclass(frozen=True, kw_only=True)
class QdrantPlace:
    """Where `python -m index push` has written an index."""

    url: str
    """Of the Qdrant."""
    collection: str
    """The name that was given to `push`, without the index's id."""
    api_key: str | None = field(default=None, repr=False)
    """What it asks for; None: nothing."""
    timeout_s: int = 10
    """Seconds that one call may take."""


@dataclass(frozen=True, kw_only=True)
class NeuronFilter:
    """Which neurons a list holds: those that meet every condition; as it stands, all."""

    min_density: float | None = None
    """Least density, in [0, 1]; None: no bound. Densities and bounds are compared in float32, as they travel."""
    max_density: float | None = None
    """Largest density, likewise."""
    name_contains: str = ""
    """Text that one of the names contains, letter case aside; empty: any name, or none."""
    alive_only: bool = False
    """Whether neurons that fire on no image are left out."""
    in_dense_cluster: bool | None = None
    """Whether they are in the dense cluster; None: either."""
    is_sensitive: bool | None = None
    """Whether they are sensitive; None: either."""


ALL_NEURONS = NeuronFilter()
"""No condition."""


class NameSource(StrEnum):
    """Where the words of a name come from."""

    LABEL = "label"
    """A label value of the corpus."""
    CAPTION = "caption"
    """A word or two neighbouring words of the captions."""
    VOCABULARY = "vocabulary"
    """A word of a vocabulary, by the text tower."""


@dataclass(frozen=True, kw_only=True)
class NeuronName:
    """A first name for a neuron, with its evidence."""

    name: str
    """A label value, a caption word, two neighbouring caption words, or a word of a vocabulary."""
    score: float
    """Activation-weighted share of the top exemplars that bear the name, minus its share in the corpus; in (0, 1].

    Of a vocabulary's word: activation-weighted cosine of the exemplars' centred embeddings with its own.
    """
    margin: float
    """`score` minus that of the best competing name of the same source; 0: another fits as well; below 0: better."""
    source: NameSource
    """Where the words come from."""


@dataclass(frozen=True, kw_only=True)
class NeuronRow:
    """What the neuron table holds of one neuron; statistics are over the images on which it fires."""

    neuron_id: int
    """0-based."""
    firing_count: int
    """Images on which it fires."""
    density: float
    """`firing_count` over the readable images; in [0, 1]."""
    mean: float
    """Mean activation where it fires; 0 for a dead neuron. Unit: activation."""
    std: float
    """Standard deviation of the activation where it fires; 0 for a dead neuron. Unit: activation."""
    maximum: float
    """Largest activation; 0 for a dead neuron. Unit: activation."""
    quantiles: tuple[float, ...]
    """Activations at `index.statistics.QUANTILE_PROBABILITIES`; empty for a dead neuron. Unit: activation."""
    label_entropy: float | None
    """Entropy of the activation-weighted labels of its images, in bits; None without labels or for a dead neuron."""
    names: tuple[NeuronName, ...]
    """First names, best first; empty where nothing fits well enough."""
    monosemanticity: float | None = None
    """Mean cosine of the embeddings of its images, weighted by activation; in [-1, 1]; None without embeddings, or
    where it fires on fewer than two images."""
    is_dense: bool = False
    """Whether it fires on more of the images than max(10 %, 8 x L0 / neurons)."""
    in_dense_cluster: bool = False
    """Whether it is dense and fires mostly together with others that are."""

    @property
    def alive(self) -> bool:
        """Whether it fires on any image of the corpus."""
        return self.firing_count > 0


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """An image that shows what a neuron does."""

    row: int
    """Corpus row."""
    value: float
    """The neuron's activation on it. Unit: activation."""
    quantile: float
    """Share of the neuron's firing images with a smaller activation; in [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """What the image table holds of one corpus row."""

    row: int
    """Corpus row, 0-based."""
    uri: str
    """As the corpus names it: relative to its root, or a URL."""
    sha256: str
    """Digest of the image's bytes, hexadecimal; empty where the bytes could not be read."""
    label: str | None
    """The corpus's label."""
    caption: str | None
    """The corpus's caption."""
    width: int
    """Width in pixels after orientation; 0 for a quarantined image."""
    height: int
    """Height in pixels after orientation; 0 for a quarantined image."""
    quarantine_reason: str | None = None
    """Why the image could not be used; None for a good one."""


@dataclass(frozen=True, kw_only=True)
class SimilarImage:
    """An image whose code resembles a given code."""

    row: int
    """Corpus row."""
    similarity: float
    """Of the two sparse codes, over the neurons that count, in the metric that was asked for."""
    shared_neuron_ids: tuple[int, ...]
    """Neurons that fire on both and count, the largest part of the similarity first."""
    recall: float = 1.0
    """Share of the exact nearest that such a search finds, measured when the index was built; 1 where it is exact."""
