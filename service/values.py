"""What the service answers, as plain values: no protobuf, no gRPC, no files.

The contract in proto/phosphene/v1 says what each of them means on the wire; names are the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from index.values import ImageRow, NeuronRow, SearchEngine
from phosphene.codes import ImageCode
from phosphene.framing import Region

__all__ = [
    "ActivationHistogram",
    "ActiveNeuron",
    "CoActiveNeuron",
    "CodeSearch",
    "CorpusImage",
    "ExemplarImage",
    "Explanation",
    "FidelityReport",
    "ImageList",
    "ImageMatch",
    "ImageMetric",
    "NeuronList",
    "NeuronMatch",
    "NeuronProfile",
    "NeuronView",
    "PatchGrid",
    "PatchMap",
    "QueriedImage",
]


@dataclass(frozen=True, kw_only=True)
class CorpusImage:
    """An image of the corpus."""

    image: ImageRow
    thumbnail: bytes = field(default=b"", repr=False)
    """A small JPEG file; empty where it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """The patches of an image."""

    row_count: int
    column_count: int
    region: Region
    """The part of the image that they cover."""


@dataclass(frozen=True, kw_only=True)
class PatchMap:
    """Where on an image a neuron fires."""

    grid: PatchGrid
    shares: bytes
    """A byte for each patch, row by row: activation / the one on the image, x 255."""


@dataclass(frozen=True, kw_only=True)
class ExemplarImage:
    """An image that excites a neuron."""

    image: CorpusImage
    activation: float
    quantile: float
    """Share of the neuron's firing images that excite it less."""
    patch_map: PatchMap | None = None
    """None: not asked for, or the index keeps none."""


class NeuronView(NamedTuple):
    """A neuron in a list; a tuple, because every answer lists dozens and one is made five times as fast."""

    neuron_id: int
    row: NeuronRow | None
    """What the corpus says of it; None without a corpus."""
    is_sensitive: bool = False
    """Whether the corpus's flags name it."""


class ActiveNeuron(NamedTuple):
    """A neuron that fires on the image; a tuple as `NeuronView` is."""

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
    patch_map: PatchMap | None = None
    """Of the queried neuron; None: not asked for, the query is no neuron, or the index keeps none."""


@dataclass(frozen=True, kw_only=True)
class CodeSearch:
    """How images with similar codes are looked for."""

    recall: float
    """Share of the nearest that it finds; 1: exact."""
    left_out_neuron_ids: tuple[int, ...]
    """Neurons that do not count, ascending."""
    engine: SearchEngine
    """What found them."""


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
    engine: str
    """What encoded the image, now or for the index."""
    fidelity: FidelityReport | None = None
    neurons: tuple[ActiveNeuron, ...] = ()
    grid: PatchGrid | None = None
    """The patches of `patch_activations`."""
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

    neuron: NeuronView
    row: NeuronRow
    """What the corpus says of it."""
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
    CODE_INNER_PRODUCT = "inner product of codes"
    RESIDUAL_COSINE = "cosine of residuals"
    TEXT_COSINE = "cosine of words and image"
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
    recall: float | None = None
    """Share of the nearest that the search finds; None where there is no nearest."""
    engine: SearchEngine = SearchEngine.INDEX
    """What found them."""
    encoder_engine: str = ""
    """What encoded the queried image; empty where the query is none."""


Vector = Float32[np.ndarray, " width"]
