"""What is asked of the service and what it answers, as plain values: no protobuf, no gRPC, no files.

The contract in proto/phosphene/v1 says what each of them means on the wire; names are the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Float32

from index.values import ImageRow, NeuronName, NeuronOrder, NeuronRow
from phosphene.codes import ImageCode

__all__ = [
    "ActivationHistogram",
    "ActiveNeuron",
    "CoActiveNeuron",
    "CodeSearch",
    "CorpusImage",
    "ExemplarImage",
    "ExplainPart",
    "ExplainQuery",
    "Explanation",
    "FidelityReport",
    "ImageBytes",
    "ImageDigest",
    "ImageList",
    "ImageLookup",
    "ImageMatch",
    "ImageMetric",
    "ImageQuery",
    "ImageSearch",
    "ImageUpload",
    "LikeExpression",
    "LikeImage",
    "LikeNeuron",
    "LikeText",
    "NeuronFilter",
    "NeuronList",
    "NeuronListQuery",
    "NeuronMatch",
    "NeuronPart",
    "NeuronProfile",
    "NeuronQuery",
    "NeuronSearch",
    "NeuronView",
    "QueriedImage",
    "Scope",
]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which bundle and corpus a request is about; empty names mean the defaults."""

    bundle: str = ""
    """Name of a bundle."""
    corpus: str = ""
    """Name of a corpus of that bundle."""


@dataclass(frozen=True)
class ImageBytes:
    """An uploaded image."""

    data: bytes = field(repr=False)
    """The encoded file."""


@dataclass(frozen=True)
class ImageDigest:
    """An image of the corpus."""

    sha256: str
    """Digest of the encoded file, 64 lowercase hexadecimal digits."""


@dataclass(frozen=True)
class ImageUpload:
    """An image whose bytes follow in pieces, on a stream."""

    size_bytes: int
    """Bytes of all pieces together."""


ImageQuery = ImageBytes | ImageDigest | ImageUpload


class ExplainPart(StrEnum):
    """A part of an explanation."""

    FIDELITY = "fidelity"
    NEURONS = "neurons"
    PATCH_ACTIVATIONS = "patch activations"
    NEAREST_NEURONS = "nearest neurons"
    TOP_IMAGES = "top images"
    SIMILAR_IMAGES = "similar images"
    SCORES = "scores"
    CODE = "code"


@dataclass(frozen=True, kw_only=True)
class ExplainQuery:
    """What lights up on an image."""

    scope: Scope
    image: ImageQuery
    parts: frozenset[ExplainPart] = frozenset({ExplainPart.NEURONS})
    """Never empty; what a part implies is in it too."""
    top_n: int = 10
    nearest_count: int = 10
    exemplars_per_neuron: int = 9
    similar_count: int = 12
    score_count: int = 10
    with_thumbnails: bool = False


class NeuronPart(StrEnum):
    """A part of what is known of a neuron."""

    TOP_IMAGES = "top images"
    SPREAD_IMAGES = "spread images"
    SIMILAR_NEURONS = "similar neurons"
    HISTOGRAM = "histogram"
    CO_ACTIVE_NEURONS = "co-active neurons"


@dataclass(frozen=True, kw_only=True)
class NeuronQuery:
    """What is known of one neuron."""

    scope: Scope
    neuron_id: int
    parts: frozenset[NeuronPart] = frozenset()
    exemplar_count: int = 9
    similar_count: int = 10
    bin_count: int = 10
    co_active_count: int = 10
    with_thumbnails: bool = False


@dataclass(frozen=True, kw_only=True)
class NeuronFilter:
    """Which neurons a list holds; None and empty mean no condition."""

    min_density: float | None = None
    max_density: float | None = None
    name_contains: str = ""
    alive_only: bool = False


@dataclass(frozen=True, kw_only=True)
class NeuronListQuery:
    """Neurons in an order, page by page."""

    scope: Scope
    order: NeuronOrder = NeuronOrder.NEURON_ID
    filter: NeuronFilter = NeuronFilter()
    page_size: int = 50
    page_token: str = ""


@dataclass(frozen=True)
class LikeText:
    """Like these words."""

    text: str


@dataclass(frozen=True)
class LikeNeuron:
    """Like this neuron, or exciting it."""

    neuron_id: int


@dataclass(frozen=True)
class LikeImage:
    """Like this image."""

    image: ImageQuery


@dataclass(frozen=True)
class LikeExpression:
    """Firing as this neuron expression asks."""

    text: str


@dataclass(frozen=True, kw_only=True)
class NeuronSearch:
    """Neurons by meaning."""

    scope: Scope
    like: LikeText | LikeNeuron
    count: int = 10
    exemplars_per_neuron: int = 0
    """0: no top images are asked for."""
    with_thumbnails: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageSearch:
    """Images of the corpus with a similar code, that excite a neuron, or that fire as an expression asks."""

    scope: Scope
    like: LikeImage | LikeNeuron | LikeExpression
    count: int = 12
    with_thumbnails: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageLookup:
    """One image of the corpus."""

    scope: Scope
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CorpusImage:
    """An image of the corpus."""

    image: ImageRow
    thumbnail: bytes = field(default=b"", repr=False)
    """A small JPEG file; empty where it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class ExemplarImage:
    """An image that excites a neuron."""

    image: CorpusImage
    activation: float
    quantile: float
    """Share of the neuron's firing images that excite it less."""


@dataclass(frozen=True, kw_only=True)
class NeuronView:
    """A neuron in a list."""

    neuron_id: int
    row: NeuronRow | None
    """What the corpus says of it; None without a corpus."""


@dataclass(frozen=True, kw_only=True)
class ActiveNeuron:
    """A neuron that fires on the image."""

    neuron: NeuronView
    activation: float
    quantile: float | None = None
    """Share of its firing images that excite it less; None without a corpus or where it never fires."""
    patch_activations: tuple[float, ...] = ()
    top_images: tuple[ExemplarImage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NeuronMatch:
    """A neuron that answers a query."""

    neuron: NeuronView
    score: float
    """Cosine."""
    top_images: tuple[ExemplarImage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageMatch:
    """An image that answers a query."""

    image: CorpusImage
    score: float
    shared_neuron_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CodeSearch:
    """How images with similar codes are looked for."""

    recall: float
    """Share of the nearest that it finds; 1: exact."""
    left_out_neuron_ids: tuple[int, ...]
    """Neurons that do not count, ascending."""


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """How well the SAE explains the image; None where the index does not hold it."""

    fvu: float
    cut_count: int
    cosine: float | None = None
    l0: float | None = None
    residual_norm: float | None = None
    token_cut_count: int | None = None


@dataclass(frozen=True, kw_only=True)
class QueriedImage:
    """The image that was looked at."""

    sha256: str
    width: int
    height: int
    drafted: bool
    corpus_image: CorpusImage | None
    """The same image in the corpus, if it holds it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What lights up on an image; parts that were not asked for are None or empty."""

    image: QueriedImage
    engine: str = ""
    """What encoded the image; empty where the index answered."""
    fidelity: FidelityReport | None = None
    neurons: tuple[ActiveNeuron, ...] = ()
    grid: tuple[int, int] | None = None
    """Rows and columns of `patch_activations`."""
    nearest_neurons: tuple[NeuronMatch, ...] = ()
    similar_images: tuple[ImageMatch, ...] = ()
    code_search: CodeSearch | None = None
    """How `similar_images` were looked for."""
    scores: tuple[tuple[str, float], ...] = ()
    code: ImageCode | None = None


@dataclass(frozen=True, kw_only=True)
class ActivationHistogram:
    """How a neuron's activations spread over the images on which it fires."""

    edges: tuple[float, ...]
    """Ascending, from 0 to its largest activation."""
    counts: tuple[int, ...]
    """Images between two edges; one fewer than edges."""


@dataclass(frozen=True, kw_only=True)
class CoActiveNeuron:
    """A neuron that fires on the same images as another."""

    neuron: NeuronView
    npmi: float
    """Normalised pointwise mutual information; in (0, 1]."""
    image_count: int
    """Images on which both fire."""


@dataclass(frozen=True, kw_only=True)
class NeuronProfile:
    """What is known of one neuron."""

    row: NeuronRow
    image_count: int
    """Images that were indexed."""
    quantile_levels: tuple[float, ...]
    """Levels of `row.quantiles`."""
    top_images: tuple[ExemplarImage, ...] = ()
    spread_images: tuple[ExemplarImage, ...] = ()
    similar_neurons: tuple[NeuronMatch, ...] = ()
    histogram: ActivationHistogram | None = None
    """None: not asked for, or it never fires."""
    co_active_neurons: tuple[CoActiveNeuron, ...] = ()

    @property
    def names(self) -> tuple[NeuronName, ...]:
        """Name candidates, best first."""
        return self.row.names


@dataclass(frozen=True, kw_only=True)
class NeuronList:
    """A page of neurons."""

    neurons: tuple[NeuronView, ...]
    next_page_token: str
    """Empty: this is the last page."""
    total_count: int
    """Neurons that satisfy the filter, on all pages."""


class ImageMetric(StrEnum):
    """What the score of an image measures."""

    CODE_COSINE = "cosine of codes"
    ACTIVATION = "activation"
    EXPRESSION = "expression"


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images that answer a query, best first."""

    images: tuple[ImageMatch, ...]
    metric: ImageMetric
    total_count: int | None = None
    """Images that fire as an expression asks, listed or not; None for other queries."""
    code_search: CodeSearch | None = None
    """How images with similar codes were looked for; None for other queries."""


Vector = Float32[np.ndarray, " width"]
