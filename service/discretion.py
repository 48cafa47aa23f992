"""A corpus's reader for one answer that shows nothing sensitive, and keeps count of what it left out.

Asks the reader itself first; where the answer holds something sensitive, it notes that and asks again without. So an
answer with nothing to hide costs what it always does. Figures (statistics, quantiles, histograms, totals) stay those of
the whole corpus: they show no image. Not thread-safe: one answer, one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

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
    SimilarImage,
)
from phosphene.codes import ImageCode
from phosphene.errors import NotFound
from service.corpus_reader import CorpusReader
from service.queries import SHARED_NEURON_LIMIT

__all__ = ["DiscreetReader"]

Listed = TypeVar("Listed")


class DiscreetReader:
    """What `CorpusReader` answers, less what is sensitive."""

    def __init__(self, reader: CorpusReader) -> None:
        """Take a reader whose corpus has flags."""
        self._reader, self._discreet = reader, reader.without_sensitive()
        self._sensitive = reader.sensitive_neuron_ids
        self._hidden_digests: set[str] = set()
        self._hidden_neuron_ids: set[int] = set()
        self.id, self.plan_id, self.code_id = reader.id, reader.plan_id, reader.code_id
        self.tombstones_id, self.take_down_ids = reader.tombstones_id, reader.take_down_ids
        self.flags_id, self.sensitive_neuron_ids = reader.flags_id, reader.sensitive_neuron_ids
        self.names_id = reader.names_id
        self.image_count, self.neuron_count = reader.image_count, reader.neuron_count
        self.quantile_levels, self.patch_grid = reader.quantile_levels, reader.patch_grid
        self.has_labels, self.has_text = reader.has_labels, reader.has_text
        self.residual_recall, self.text_recall = reader.residual_recall, reader.text_recall
        self.code_engine = reader.code_engine
        self.similar_recall = reader.similar_recall
        self.left_out_neuron_ids = tuple(i for i in reader.left_out_neuron_ids if i not in self._sensitive)

    @property
    def hidden_count(self) -> int:
        """Different neurons and images that were left out so far."""
        return len(self._hidden_digests) + len(self._hidden_neuron_ids)

    def without_sensitive(self) -> DiscreetReader:
        """It is one."""
        return self

    def shown_code(self, code: ImageCode, count: int | None = None) -> ImageCode:
        """A code without sensitive neurons; of `count`, those that would be listed among so many are noted."""
        is_hidden = np.isin(code.neuron_ids, list(self._sensitive))
        self._hidden_neuron_ids |= set(code.neuron_ids[:count][is_hidden[:count]].tolist())
        return replace(code, neuron_ids=code.neuron_ids[~is_hidden], values=code.values[~is_hidden])

    def is_sensitive(self, row: int) -> bool:
        """Whether an image is."""
        return self._reader.is_sensitive(row)

    def is_taken_down(self, sha256: str) -> bool:
        """Whether the image with this digest was taken down."""
        return self._reader.is_taken_down(sha256)

    def check_neuron(self, neuron_id: int, *, field: str = "neuron_id") -> None:
        """Raise `NotFound` for a neuron that is sensitive."""
        if neuron_id in self._sensitive:
            raise NotFound(
                f"neuron {neuron_id} is sensitive; ask for it with include_sensitive", field=field, name=str(neuron_id)
            )

    def neuron(self, neuron_id: int) -> NeuronRow:
        """Figures of a neuron that is not sensitive; raises `NotFound` for one that is."""
        self.check_neuron(neuron_id)
        return self._reader.neuron(neuron_id)

    def list_neurons(self, order: NeuronOrder, filter: NeuronFilter = ALL_NEURONS) -> Sequence[int]:
        """Those that are not sensitive."""
        found = self._reader.list_neurons(order, filter)
        self._hidden_neuron_ids |= self._sensitive & set(found)
        return [neuron_id for neuron_id in found if neuron_id not in self._sensitive]

    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> Sequence[Exemplar]:
        """Exemplars that are not sensitive, of a neuron that is not."""
        self.check_neuron(neuron_id)
        found = self._reader.exemplars(neuron_id, kind, count)
        return self._images(found, lambda shown: shown.row, lambda: self._discreet.exemplars(neuron_id, kind, count))

    def image(self, row: int) -> ImageRow:
        """A row that is not sensitive; raises `NotFound` for one that is, as everything by row does."""
        return self._discreet.image(row)

    def row_of(self, sha256: str) -> int | None:
        """The row of an image that is not sensitive."""
        return self._discreet.row_of(sha256)

    def listed_row_of(self, sha256: str) -> int | None:
        """The same, for an answer that lists the image: one that is sensitive is noted."""
        if self.hides(sha256):
            self._hidden_digests.add(sha256)
        return self.row_of(sha256)

    def rows_of(self, sha256: str) -> Sequence[int]:
        """All its rows, sensitive or not: for what leaves them out."""
        return self._reader.rows_of(sha256)

    def hides(self, sha256: str) -> bool:
        """Whether the image with this digest is of the corpus, and sensitive."""
        return self.row_of(sha256) is None and self._reader.row_of(sha256) is not None

    def thumbnail(self, row: int) -> bytes:
        """Its small JPEG."""
        return self._discreet.thumbnail(row)

    def code(self, row: int) -> ImageCode:
        """Its code, whole: what is asked of the index; `shown_code` is for answers."""
        return self._discreet.code(row)

    def patch_map(self, row: int, neuron_id: int) -> UInt8[np.ndarray, "grid_rows grid_columns"] | None:
        """Where a neuron fires on it."""
        self.check_neuron(neuron_id)
        return self._discreet.patch_map(row, neuron_id)

    def fvu(self, row: int) -> float:
        """Share of its residual variance that its code does not explain."""
        return self._discreet.fvu(row)

    def quantile(self, neuron_id: int, value: float) -> float:
        """A figure, over all images."""
        return self._reader.quantile(neuron_id, value)

    def residual(self, row: int) -> Float32[np.ndarray, " width"]:
        """Its stored residual."""
        return self._discreet.residual(row)

    def similar_images(
        self,
        code: ImageCode,
        count: int,
        *,
        exclude_rows: Collection[int] = (),
        metric: CodeMetric = CodeMetric.COSINE,
        neuron_ids: Sequence[int] | None = None,
    ) -> Sequence[SimilarImage]:
        """Images that are not sensitive; the neurons that they share stay unnamed where they are.

        Raises `NotFound` for a sensitive one of `neuron_ids`.
        """
        for neuron_id in neuron_ids or ():
            self.check_neuron(neuron_id, field="only_neuron_ids")

        def search(reader: CorpusReader) -> Sequence[SimilarImage]:
            return reader.similar_images(code, count, exclude_rows=exclude_rows, metric=metric, neuron_ids=neuron_ids)

        whole = search(self._reader)
        named = (neuron_id for match in whole for neuron_id in match.shared_neuron_ids[:SHARED_NEURON_LIMIT])
        self._hidden_neuron_ids |= self._sensitive.intersection(named)
        found = self._images(whole, lambda match: match.row, lambda: search(self._discreet))
        return [
            replace(match, shared_neuron_ids=tuple(i for i in match.shared_neuron_ids if i not in self._sensitive))
            for match in found
        ]

    def images_by_residual(
        self, vector: Float32[np.ndarray, " width"], count: int, *, exclude_rows: Collection[int] = ()
    ) -> Sequence[tuple[int, float]]:
        """Images that are not sensitive."""
        found = self._reader.images_by_residual(vector, count, exclude_rows=exclude_rows)
        again = partial(self._discreet.images_by_residual, vector, count, exclude_rows=exclude_rows)
        return self._images(found, lambda match: match[0], again)

    def images_by_text(self, vector: Float32[np.ndarray, " embedding"], count: int) -> Sequence[tuple[int, float]]:
        """Images that are not sensitive."""
        found = self._reader.images_by_text(vector, count)
        return self._images(found, lambda match: match[0], lambda: self._discreet.images_by_text(vector, count))

    def images_by_expression(self, expression: str, count: int) -> Sequence[tuple[int, float]]:
        """Images that are not sensitive; raises `NotFound` where the expression names a neuron that is."""
        for neuron_id in sorted(self._reader.named_neurons(expression)):
            self.check_neuron(neuron_id, field="expression")
        found = self._reader.images_by_expression(expression, count)
        return self._images(
            found, lambda match: match[0], lambda: self._discreet.images_by_expression(expression, count)
        )

    def count_by_expression(self, expression: str) -> int:
        """A figure, over all images."""
        return self._reader.count_by_expression(expression)

    def named_neurons(self, expression: str) -> frozenset[int]:
        """The neurons that an expression names."""
        return self._reader.named_neurons(expression)

    def activation_histogram(self, neuron_id: int, edges: Float64[np.ndarray, " edges"]) -> Int64[np.ndarray, " bins"]:
        """A figure, over all images."""
        return self._reader.activation_histogram(neuron_id, edges)

    def co_active_neurons(self, neuron_id: int, count: int) -> Sequence[tuple[int, float, int]]:
        """Those that are not sensitive."""
        self.check_neuron(neuron_id)
        return self._neurons(
            lambda wanted: self._reader.co_active_neurons(neuron_id, wanted), lambda other: other[0], count
        )

    def nearest_neurons(self, vector: Float32[np.ndarray, " width"], count: int) -> Sequence[tuple[int, float]]:
        """Those that are not sensitive."""
        return self._neurons(lambda wanted: self._reader.nearest_neurons(vector, wanted), lambda near: near[0], count)

    def neurons_like(self, neuron_id: int, count: int) -> Sequence[tuple[int, float]]:
        """Those that are not sensitive."""
        self.check_neuron(neuron_id)
        return self._neurons(lambda wanted: self._reader.neurons_like(neuron_id, wanted), lambda other: other[0], count)

    def neurons_by_text(
        self, text_vector: Float32[np.ndarray, " embedding"], count: int
    ) -> Sequence[tuple[int, float]]:
        """Those that are not sensitive."""
        return self._neurons(
            lambda wanted: self._reader.neurons_by_text(text_vector, wanted), lambda match: match[0], count
        )

    def _images(
        self, found: Sequence[Listed], row_of: Callable[[Listed], int], again: Callable[[], Sequence[Listed]]
    ) -> Sequence[Listed]:
        hidden = {row for row in map(row_of, found) if self.is_sensitive(row)}
        self._hidden_digests |= {self._reader.image(row).sha256 for row in hidden}
        return again() if hidden else found

    def _neurons(
        self, fetch: Callable[[int], Sequence[Listed]], id_of: Callable[[Listed], int], count: int
    ) -> Sequence[Listed]:
        found = fetch(count)
        hidden = {id_of(each) for each in found} & self._sensitive
        self._hidden_neuron_ids |= hidden
        if hidden:
            found = fetch(count + len(self._sensitive))
        return [each for each in found if id_of(each) not in self._sensitive][:count]
