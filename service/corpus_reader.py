"""What the service asks of an index, as an interface that `index.reader.IndexReader` and the tests' fake satisfy.

Every call reads memory-mapped files or searches FAISS and may block for milliseconds: it belongs in a worker thread.
Calls are safe from several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from index.values import Exemplar, ExemplarKind, ImageRow, NeuronOrder, NeuronRow, SimilarImage
from phosphene.codes import ImageCode

__all__ = ["CorpusReader"]


@runtime_checkable
class CorpusReader(Protocol):
    """Everything precomputed over one corpus for one bundle; see `index.reader` for the meaning of each."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def plan_id(self) -> str: ...  # noqa: D102
    @property
    def code_id(self) -> str: ...  # noqa: D102
    @property
    def image_count(self) -> int: ...  # noqa: D102
    @property
    def neuron_count(self) -> int: ...  # noqa: D102
    @property
    def quantile_levels(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def has_labels(self) -> bool: ...  # noqa: D102
    @property
    def has_text(self) -> bool: ...  # noqa: D102

    def neuron(self, neuron_id: int) -> NeuronRow: ...  # noqa: D102
    def list_neurons(  # noqa: D102
        self,
        order: NeuronOrder,
        *,
        min_density: float | None = None,
        max_density: float | None = None,
        name_contains: str = "",
        alive_only: bool = False,
    ) -> Sequence[int]: ...
    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> Sequence[Exemplar]: ...  # noqa: D102
    def image(self, row: int) -> ImageRow: ...  # noqa: D102
    def row_of(self, sha256: str) -> int | None: ...  # noqa: D102
    def thumbnail(self, row: int) -> bytes: ...  # noqa: D102
    def code(self, row: int) -> ImageCode: ...  # noqa: D102
    def fvu(self, row: int) -> float: ...  # noqa: D102
    def quantile(self, neuron_id: int, value: float) -> float: ...  # noqa: D102
    def similar_images(  # noqa: D102
        self, code: ImageCode, count: int, *, exclude_row: int | None = None
    ) -> Sequence[SimilarImage]: ...
    def nearest_neurons(self, vector: Float32[np.ndarray, " width"], count: int) -> Sequence[tuple[int, float]]: ...  # noqa: D102
    def neurons_like(self, neuron_id: int, count: int) -> Sequence[tuple[int, float]]: ...  # noqa: D102
    def neurons_by_text(  # noqa: D102
        self, text_vector: Float32[np.ndarray, " embedding"], count: int
    ) -> Sequence[tuple[int, float]]: ...
