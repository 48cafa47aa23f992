"""What a caller may choose for each call: described once, taken by `Client` and `AsyncClient` alike.

An option that is left out leaves the choice to the service, whose defaults and bounds proto/phosphene/v1 names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

__all__ = [
    "ExplainImagesOptions",
    "ExplainOptions",
    "ExplainPartName",
    "ImageSimilarity",
    "ListNeuronsOptions",
    "NeuronOptions",
    "NeuronOrderName",
    "NeuronPartName",
    "Place",
    "SearchImagesOptions",
    "SearchNeuronsOptions",
]

ExplainPartName = Literal[
    "fidelity", "neurons", "patch_activations", "nearest_neurons", "top_images", "similar_images", "scores", "code"
]
"""The values of `ExplainPart`, without prefix and in lower case."""
NeuronPartName = Literal["top_images", "spread_images", "similar_neurons", "histogram", "co_active_neurons"]
"""The values of `NeuronPart`, likewise."""
NeuronOrderName = Literal["id", "density", "maximum", "mean", "label_entropy", "name_score", "monosemanticity"]
"""The values of `NeuronOrder`, likewise."""
ImageSimilarity = Literal["code_cosine", "code_inner_product", "residual_cosine"]
"""The values of `ImageMetric` by which an image can be compared, likewise."""


class Place(TypedDict, total=False):
    """Where to look."""

    bundle: str
    """Name of a bundle; the default one if empty."""
    corpus: str
    """Name of one of its corpora; its default one if empty."""
    include_sensitive: bool
    """Whether answers may show what the service's flags call sensitive."""


class ExplainOptions(Place, total=False):
    """What `explain` answers; see `ExplainRequest`."""

    parts: Iterable[ExplainPartName]
    """What to compute; neurons alone if empty. What this bundle or corpus cannot give is refused."""
    top_n: int
    """Active neurons to list."""
    nearest_count: int
    """Nearest neurons to list."""
    exemplars_per_neuron: int
    """Top images of each listed neuron."""
    similar_count: int
    """Similar images to list."""
    score_count: int
    """Scores to list."""
    include_thumbnails: bool
    """Whether each listed image brings its small JPEG."""
    include_patch_maps: bool
    """Whether each listed image says where on it the neuron fires, as far as the index knows."""


class ExplainImagesOptions(ExplainOptions, total=False):
    """How `explain_images` goes about it, beside what it answers."""

    digest_first: bool
    """Whether to ask by digest first, and send only the images that the service needs."""
    in_flight: int
    """Most images that are asked and not answered; 32 if left out."""


class NeuronOptions(Place, total=False):
    """What `neuron` answers; see `GetNeuronRequest`."""

    parts: Iterable[NeuronPartName]
    """What to answer beside statistics and names."""
    exemplar_count: int
    """Top images, and spread images, to list."""
    similar_count: int
    """Similar neurons to list."""
    bin_count: int
    """Bins of the histogram."""
    co_active_count: int
    """Co-active neurons to list."""
    include_thumbnails: bool
    """Whether each listed image brings its small JPEG."""
    include_patch_maps: bool
    """Whether each listed image says where on it the neuron fires, as far as the index knows."""


class ListNeuronsOptions(Place, total=False):
    """Which neurons are listed, and how; see `ListNeuronsRequest` and `NeuronFilter`."""

    order: NeuronOrderName
    """The order; by id if left out."""
    min_density: float
    """Least density, in [0, 1]."""
    max_density: float
    """Greatest density, in [0, 1]."""
    name_contains: str
    """A text that one of the neuron's names contains, letter case aside."""
    alive_only: bool
    """Whether to leave out neurons that fire on no image of the corpus."""
    in_dense_cluster: bool
    """Only neurons of the dense cluster, or only the others."""
    is_sensitive: bool
    """Only neurons that are flagged as sensitive, or only the others; True needs `include_sensitive`."""


class SearchNeuronsOptions(Place, total=False):
    """What `search_neurons` answers; see `SearchNeuronsRequest`."""

    count: int
    """Neurons to list."""
    include_top_images: bool
    """Whether every neuron shows its top images."""
    exemplars_per_neuron: int
    """Top images of each neuron."""
    include_thumbnails: bool
    """Whether each listed image brings its small JPEG."""
    include_patch_maps: bool
    """Whether each listed image says where on it the neuron fires, as far as the index knows."""


class SearchImagesOptions(Place, total=False):
    """What `search_images` answers; see `SearchImagesRequest`."""

    similarity: ImageSimilarity
    """How an image is compared with those of the corpus; by cosine of codes unless given."""
    only_neuron_ids: Sequence[int]
    """Neurons whose products alone make up the similarity of codes; all unless given."""
    count: int
    """Images to list."""
    include_thumbnails: bool
    """Whether each listed image brings its small JPEG."""
    include_patch_maps: bool
    """Whether each listed image says where on it the neuron fires, as far as the index knows."""
