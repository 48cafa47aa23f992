"""What the service asks of an index, as an interface that `index.reader.IndexReader` and the tests' fake satisfy.

Every call reads memory-mapped files or searches FAISS and may block for milliseconds: it belongs in a worker thread.
Calls are safe from several threads at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from index.values import (
    ALL_NEURONS,
    CodeMetric,
    Exemplar,
    ExemplarKind,
    ImageRow,
    NeuronFilter,
    NeuronOrder,
    NeuronRow,
    SearchEngine,
    SimilarImage,
)
from phosphene.codes import ImageCode

__all__ = ["CorpusReader"]


@runtime_checkable
class CorpusReader(Protocol):
    """Everything precomputed over one corpus for one bundle; see `index.reader` for the meaning of each."""

    @property
    def id(self) -> str:
        """Digest of the contents."""

    @property
    def tombstones_id(self) -> str:
        """Id of the tombstones that its answers honour; empty where there are none."""

    @property
    def take_down_ids(self) -> frozenset[str]:
        """Ids of all tombstones that no answer shows an image of, those that a compaction honoured included."""

    @property
    def plan_id(self) -> str:
        """Digest of what it was built from, and how."""

    @property
    def code_id(self) -> str:
        """What decides the codes that it holds."""

    @property
    def image_count(self) -> int:
        """Images that were indexed."""

    @property
    def neuron_count(self) -> int:
        """Neurons of the SAE."""

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Levels of `NeuronRow.quantiles`."""

    @property
    def has_labels(self) -> bool:
        """Whether an image has a label."""

    @property
    def has_text(self) -> bool:
        """Whether neurons can be found by a text vector."""

    @property
    def similar_recall(self) -> float:
        """Share of the nearest images that `similar_images` finds; 1 where it is exact."""

    @property
    def residual_recall(self) -> float:
        """Share of the nearest images that `images_by_residual` finds; 1 where it is exact."""

    @property
    def text_recall(self) -> float:
        """Share of the nearest images that `images_by_text` finds; 1 where it is exact."""

    @property
    def left_out_neuron_ids(self) -> tuple[int, ...]:
        """Neurons that do not count in `similar_images`, ascending."""

    def neuron(self, neuron_id: int) -> NeuronRow:
        """A neuron's figures and names."""

    def list_neurons(self, order: NeuronOrder, filter: NeuronFilter = ALL_NEURONS) -> Sequence[int]:
        """Ids of all neurons that pass the filter, in order."""

    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> Sequence[Exemplar]:
        """At most `count` exemplars, strongest first."""

    def image(self, row: int) -> ImageRow:
        """A row of the corpus."""

    def row_of(self, sha256: str) -> int | None:
        """The first row of an indexed image by digest; None where there is none."""

    def rows_of(self, sha256: str) -> Sequence[int]:
        """All rows of an indexed image by digest."""

    @property
    def names_id(self) -> str:
        """Id of the names that neurons go by; empty where they are the index's own."""

    @property
    def flags_id(self) -> str:
        """Id of the flags that say what is sensitive; empty where there are none."""

    @property
    def sensitive_neuron_ids(self) -> frozenset[int]:
        """Neurons that are sensitive; answers hold them all the same."""

    def is_sensitive(self, row: int) -> bool:
        """Whether the image in a row is sensitive."""

    def without_sensitive(self) -> CorpusReader:
        """The same corpus with sensitive images hidden."""

    def is_taken_down(self, sha256: str) -> bool:
        """Whether the image with this digest was taken down."""

    def thumbnail(self, row: int) -> bytes:
        """A row's small JPEG."""

    def code(self, row: int) -> ImageCode:
        """A row's stored code."""

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the maps that `patch_map` gives; None where it keeps none."""

    def patch_map(self, row: int, neuron_id: int) -> UInt8[np.ndarray, "grid_rows grid_columns"] | None:
        """Where a neuron fires on an image, in 1/255 of its activation there; None where it does not."""

    def fvu(self, row: int) -> float:
        """Share of a row's residual variance that its code does not explain."""

    def quantile(self, neuron_id: int, value: float) -> float:
        """Share of the neuron's firing images with a smaller activation."""

    def similar_images(
        self,
        code: ImageCode,
        count: int,
        *,
        exclude_rows: Collection[int] = (),
        metric: CodeMetric = CodeMetric.COSINE,
        neuron_ids: Sequence[int] | None = None,
    ) -> Sequence[SimilarImage]:
        """At most `count` images by the similarity of codes, best first."""

    def residual(self, row: int) -> Float32[np.ndarray, " width"]:
        """A row's stored residual, at norm 1."""

    def images_by_residual(
        self, vector: Float32[np.ndarray, " width"], count: int, *, exclude_rows: Collection[int] = ()
    ) -> Sequence[tuple[int, float]]:
        """At most `count` (row, cosine of residuals), best first."""

    def images_by_text(self, vector: Float32[np.ndarray, " embedding"], count: int) -> Sequence[tuple[int, float]]:
        """At most `count` (row, cosine of its embedding with a vector of the text tower), best first."""

    def images_by_expression(self, expression: str, count: int) -> Sequence[tuple[int, float]]:
        """At most `count` (row, score) of the images that fire as asked, best first."""

    def count_by_expression(self, expression: str) -> int:
        """How many images fire as asked."""

    def named_neurons(self, expression: str) -> frozenset[int]:
        """The neurons that an expression names."""

    @property
    def code_engine(self) -> SearchEngine:
        """What answers `similar_images` and expressions."""

    def activation_histogram(self, neuron_id: int, edges: Float64[np.ndarray, " edges"]) -> Int64[np.ndarray, " bins"]:
        """Images on which a neuron fires, by activation."""

    def co_active_neurons(self, neuron_id: int, count: int) -> Sequence[tuple[int, float, int]]:
        """At most `count` (other neuron id, normalised PMI, images on which both fire), best first."""

    def nearest_neurons(self, vector: Float32[np.ndarray, " width"], count: int) -> Sequence[tuple[int, float]]:
        """At most `count` (neuron id, cosine of its direction with the vector), best first."""

    def neurons_like(self, neuron_id: int, count: int) -> Sequence[tuple[int, float]]:
        """At most `count` other neurons by cosine of directions, best first."""

    def neurons_by_text(
        self, text_vector: Float32[np.ndarray, " embedding"], count: int
    ) -> Sequence[tuple[int, float]]:
        """At most `count` (neuron id, score) by a vector of the text tower, best first."""
