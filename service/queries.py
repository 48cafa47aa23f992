"""What is asked of the service, as plain values: no protobuf, no gRPC, no files.

The contract in proto/phosphene/v1 says what each of them means on the wire; names are the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from index.values import CodeMetric, NeuronFilter, NeuronOrder

__all__ = [
    "CODES_ALIKE",
    "SHARED_NEURON_LIMIT",
    "CodesAlike",
    "ExplainPart",
    "ExplainQuery",
    "ImageBytes",
    "ImageDigest",
    "ImageLookup",
    "ImageQuery",
    "ImageSearch",
    "ImageUpload",
    "LikeExpression",
    "LikeImage",
    "LikeNeuron",
    "LikeText",
    "NeuronListQuery",
    "NeuronPart",
    "NeuronQuery",
    "NeuronSearch",
    "Pictures",
    "ResidualsAlike",
    "Scope",
    "Similarity",
]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which bundle and corpus a request is about, and how much of it; empty names mean the defaults."""

    bundle: str = ""
    """Name of a bundle."""
    corpus: str = ""
    """Name of a corpus of that bundle."""
    include_sensitive: bool = False
    """Whether the answer may show neurons and images that are flagged as sensitive."""


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


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the images that an answer lists carry beside their names."""

    thumbnails: bool = False
    """Whether they carry their thumbnails."""
    patch_maps: bool = False
    """Whether they carry the map of the neuron that they are listed for."""


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
    pictures: Pictures = Pictures()


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
    pictures: Pictures = Pictures()


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


@dataclass(frozen=True, kw_only=True)
class CodesAlike:
    """Images whose codes are alike."""

    metric: CodeMetric = CodeMetric.COSINE
    only_neuron_ids: tuple[int, ...] = ()
    """Neurons whose products alone count; empty: all."""


CODES_ALIKE = CodesAlike()
"""By cosine of codes over all neurons: what is asked unless something else is."""


@dataclass(frozen=True)
class ResidualsAlike:
    """Images whose residuals are alike, by cosine."""


SHARED_NEURON_LIMIT = 16
"""Most neurons that are named for an image with a code that is alike; no request asks for more."""

Similarity = CodesAlike | ResidualsAlike


@dataclass(frozen=True)
class LikeImage:
    """Like this image."""

    image: ImageQuery
    similarity: Similarity = CODES_ALIKE


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
    pictures: Pictures = Pictures()


@dataclass(frozen=True, kw_only=True)
class ImageSearch:
    """Images like another, that excite a neuron, that fire as an expression asks, or that words describe."""

    scope: Scope
    like: LikeImage | LikeNeuron | LikeExpression | LikeText
    count: int = 12
    pictures: Pictures = Pictures()


@dataclass(frozen=True, kw_only=True)
class ImageLookup:
    """One image of the corpus."""

    scope: Scope
    sha256: str
