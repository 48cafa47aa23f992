"""What an open index answers about images: one by one, and searches for them; knows nothing of files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from index.expression import named_neurons, parse_expression
from index.opened import OpenedIndex
from index.row_sets import among
from index.values import CodeMetric, ImageRow, SearchEngine, SimilarImage
from phosphene.codes import ImageCode
from phosphene.errors import NotFound, SettingError
from phosphene.manifest import is_digest

__all__ = ["ImageAnswers"]


class ImageAnswers(OpenedIndex):
    """Answers about images."""

    def image(self, row: int) -> ImageRow:
        """Return a row of the corpus.

        Raises:
            NotFound: no such row, or it was taken down; so for all that is asked by row.
        """
        self._check_row(row)
        return self._images.image(row)

    def row_of(self, sha256: str) -> int | None:
        """Return the row of an indexed image by the digest of its bytes, in hexadecimal; None where there is none."""
        return next(self._rows_of(sha256), None)

    def rows_of(self, sha256: str) -> list[int]:
        """Return all rows of an indexed image by the digest of its bytes, in hexadecimal, rising."""
        return list(self._rows_of(sha256))

    def _rows_of(self, sha256: str) -> Iterator[int]:
        digest = sha256.lower()
        rows = self._images.rows_of(digest) if is_digest(digest) else iter(())
        return (row for row in rows if not self._visibility.hides(row))

    def is_taken_down(self, sha256: str) -> bool:
        """Tell whether the image with this digest, in hexadecimal, was taken down."""
        return self._tombstones is not None and sha256.lower() in self._tombstones.reasons

    def is_sensitive(self, row: int) -> bool:
        """Tell whether the image in a row is sensitive."""
        return bool(among(np.array([row]), self._sensitive_rows)[0])

    @property
    def taken_down_count(self) -> int:
        """Rows that no answer holds, because their images were taken down; figures as built count them."""
        return len(self._visibility.hidden_rows)

    @property
    def hidden_rows(self) -> Int64[np.ndarray, " hidden"]:
        """Rows that no answer holds although their images could be used, rising."""
        excluded = self._expressions.excluded_rows
        hidden: Int64[np.ndarray, " hidden"] = excluded[self._images.readable[excluded]]
        return hidden

    def thumbnail(self, row: int) -> bytes:
        """Return a row's small JPEG; empty for a quarantined row.

        Raises:
            NotFound: no such row.
        """
        self._check_row(row)
        return self._thumbnails.thumbnail(row)

    def code(self, row: int) -> ImageCode:
        """Return a row's stored code; empty for a quarantined row.

        Raises:
            NotFound: no such row.
        """
        self._check_row(row)
        return self._shards.code(row)

    def residual(self, row: int) -> Float32[np.ndarray, " width"]:
        """Return a row's stored residual, at norm 1; zeros for a quarantined row.

        Raises:
            NotFound: no such row.
        """
        self._check_row(row)
        return self._residuals.vector(row)

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the maps that `patch_map` gives; None where the index keeps none."""
        return None if self._maps is None else self._maps.grid

    def patch_map(self, row: int, neuron_id: int) -> UInt8[np.ndarray, "grid_rows grid_columns"] | None:
        """Return where a neuron fires on an image, in 1/255 of its activation there; 0 where it does not.

        None where it does not fire on the image, or where the index keeps no maps.

        Raises:
            NotFound: no such row or neuron.
        """
        self._check_row(row)
        self._check_neuron(neuron_id)
        return None if self._maps is None else self._maps.map(row, neuron_id)

    def fvu(self, row: int) -> float:
        """Return the share of a row's residual variance that its code does not explain.

        Raises:
            NotFound: no such row, or a quarantined one.
        """
        self._check_row(row)
        fvu = self._images.fvu(row)
        if fvu is None:
            raise NotFound(f"row {row} is quarantined: {self._images.image(row).quarantine_reason}")
        return fvu

    def similar_images(
        self,
        code: ImageCode,
        count: int,
        *,
        exclude_rows: Collection[int] = (),
        metric: CodeMetric = CodeMetric.COSINE,
        neuron_ids: Sequence[int] | None = None,
    ) -> list[SimilarImage]:
        """Return up to `count` images, the most similar code first; those that share no neuron never.

        The neurons of `summary.left_out_neuron_ids` do not count.

        Args:
            code: of any image, live or stored.
            count: at least 1.
            exclude_rows: rows to leave out: those of the query's own image.
            metric: what the similarity is.
            neuron_ids: neurons whose products alone count; norms stay those of the whole codes. None: all.

        Raises:
            NotFound: no such neuron.
            Unavailable: Qdrant was to answer, and does not.
        """
        for neuron_id in neuron_ids or ():
            self._check_neuron(neuron_id)
        if self._qdrant is not None:
            return self._qdrant.similar_images(
                code, count, exclude_rows=exclude_rows, metric=metric, neuron_ids=neuron_ids
            )
        hidden_rows = self._visibility.hidden_rows
        return self._similar.nearest(
            code, count, exclude_rows=exclude_rows, hidden_rows=hidden_rows, metric=metric, neuron_ids=neuron_ids
        )

    def images_by_residual(
        self, vector: Float32[np.ndarray, " width"], count: int, *, exclude_rows: Collection[int] = ()
    ) -> list[tuple[int, float]]:
        """Return up to `count` (row, cosine of its residual with the vector), best first; see `residual_recall`.

        Raises:
            SettingError: the vector has another width.
        """
        if len(vector) != self._residuals.width:
            raise SettingError(f"the vector has {len(vector)} numbers; residuals have {self._residuals.width}")
        return self._residuals.nearest(vector, count, shown=self._visibility.shown, exclude_rows=exclude_rows)

    @property
    def residual_recall(self) -> float:
        """Share of the nearest images that `images_by_residual` finds, measured when the index was built."""
        return self._residuals.recall

    def images_by_expression(self, expression: str, count: int) -> list[tuple[int, float]]:
        """Return up to `count` (row, score) of the images that fire as asked, best first; see `index.expression`.

        Raises:
            InputError: the expression is none.
            NotFound: it names an unknown neuron.
            Unavailable: Qdrant was to answer, and does not.
        """
        if self._qdrant is not None:
            return self._qdrant.images_by_expression(expression, count)
        parsed = parse_expression(expression, neuron_count=self.neuron_count)
        rows, scores = self._expressions.best(parsed, count)
        return [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]

    def count_by_expression(self, expression: str) -> int:
        """Return how many images fire as asked. Errors as `images_by_expression`."""
        if self._qdrant is not None:
            return self._qdrant.count_by_expression(expression)
        return self._expressions.count(parse_expression(expression, neuron_count=self.neuron_count))

    def named_neurons(self, expression: str) -> frozenset[int]:
        """Return the neurons that an expression names. Errors as `images_by_expression`."""
        return named_neurons(parse_expression(expression, neuron_count=self.neuron_count))

    @property
    def code_engine(self) -> SearchEngine:
        """What answers `similar_images` and expressions."""
        return SearchEngine.INDEX if self._qdrant is None else SearchEngine.QDRANT

    @property
    def similar_recall(self) -> float:
        """Share of the nearest images that `similar_images` finds, measured when the index was built; 1 if exact."""
        return self.summary.similar_recall if self._qdrant is None else 1.0

    def images_by_text(self, vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (row, cosine of its embedding with the vector), best first; see `text_recall`.

        Raises:
            Unanswerable: the index holds no embeddings.
            SettingError: the vector has another width.
        """
        self._text_search(vector)
        assert self._embeddings is not None, "there is a text search"
        return self._embeddings.nearest(vector, count, shown=self._visibility.shown)

    @property
    def text_recall(self) -> float:
        """Share of the nearest images that `images_by_text` finds, measured with images as queries; 1 if exact."""
        return 1.0 if self._embeddings is None else self._embeddings.recall
