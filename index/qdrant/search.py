"""Similar images and neuron expressions, answered by a Qdrant cluster as exact search of the index would answer them.

Qdrant finds the candidates, exactly, in float32, and sends their codes; they are ranked again in float64 as the index
ranks (`index.retrieval.exact`, `index.expression_evaluation`). More are asked for until no image that was not sent
could be among the best. So the answers are those of the index, but that of more than 16,384 images which float32
cannot tell apart, the first by row need not be found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from qdrant_client import QdrantClient, models

from index.expression import parse_expression
from index.expression_evaluation import asked_to_fire
from index.qdrant.collection import ACTIVATION, UNIT, Collection, Scored
from index.qdrant.filters import matching, without
from index.qdrant.push import check_metadata, check_points, collection_name
from index.qdrant.source import CodeSource
from index.retrieval.exact import check_query
from index.values import CodeMetric, SimilarImage
from phosphene.codes import ImageCode
from phosphene.errors import SettingError, Unavailable

__all__ = ["QdrantSearch"]

_SPARE = 16
_CANDIDATE_LIMIT = 16_384
_FLOAT32_STEP = 2.0**-23
_COUNT_INTERVAL_S = 10.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Query:
    """What is asked of one of the sparse vectors."""

    using: str
    """Which vector."""
    weights: dict[int, float]
    """Number above 0 by neuron."""
    score: Callable[[ImageCode], float]
    """The score of a stored code in float64."""
    unit: float = 1.0
    """What Qdrant's sum is multiplied by to be a score."""

    @property
    def slack(self) -> float:
        """How far a sum in float32 may be off, as a share of itself: nothing in it is below 0."""
        return 1 + (len(self.weights) + 8) * _FLOAT32_STEP


class QdrantSearch:
    """Answers from Qdrant for the codes of an open index; safe to use from several threads."""

    def __init__(
        self, client: QdrantClient, name: str, index: CodeSource, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Answer for `index` from what `python -m index push` wrote of it.

        Args:
            client: from `index.qdrant.collection.open_qdrant`.
            name: as given to `push`.
            index: the index, which says which neurons count and which rows may be shown.
            clock: seconds that only grow.

        Raises:
            SettingError: this index was not pushed under this name, or not to the end.
            ArtefactMismatch: the collection is another index's.
            ArtefactDamaged: it has not as many points, or a sample of them is not as it was written.
            Unavailable: Qdrant does not answer.
        """
        self._index = index
        self._collection = Collection(client, collection_name(name, index.id))
        if not self._collection.is_published():
            raise SettingError(
                f"Qdrant has no finished collection {self._collection.name!r} of index {index.id}; "
                f"push it: python -m index push INDEX --qdrant URL --collection {name}"
            )
        check_metadata(self._collection, index)
        check_points(self._collection, index)
        self._count = _PointCount(self._collection, index.image_count, clock)

    def showing(self, index: CodeSource) -> QdrantSearch:
        """The same for a view of the index that shows other rows."""
        view = copy(self)
        view._index = index
        return view

    def similar_images(
        self,
        code: ImageCode,
        count: int,
        *,
        exclude_rows: Iterable[int] = (),
        metric: CodeMetric = CodeMetric.COSINE,
        neuron_ids: Sequence[int] | None = None,
    ) -> list[SimilarImage]:
        """As `IndexReader.similar_images`, exactly.

        Raises:
            Unavailable: Qdrant does not answer.
            NotFound: the code has a neuron that there is not.
            NumericError: an activation of the code is NaN or infinite.
        """
        check_query(code.neuron_ids, code.values, neuron_count=self._index.neuron_count)
        left_out = set(self._index.left_out_neuron_ids)
        kept = {
            neuron: value
            for neuron, value in zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True)
            if neuron not in left_out and value > 0
        }
        wanted = None if neuron_ids is None else set(neuron_ids)
        chosen = {neuron: value for neuron, value in kept.items() if wanted is None or neuron in wanted}
        if not chosen:
            return []
        length = math.sqrt(math.fsum(value * value for value in kept.values()))
        weights = {neuron: value / length for neuron, value in chosen.items()}
        match metric:
            case CodeMetric.COSINE:
                query = _Query(using=UNIT, weights=weights, score=lambda other: _cosine(kept, chosen, other, left_out))
            case CodeMetric.INNER_PRODUCT:
                query = _Query(
                    using=ACTIVATION, weights=weights, score=lambda other: _inner_product(chosen, other), unit=length
                )
            case _:
                assert_never(metric)
        self._count.check()
        excluded = [*self._hidden_rows(), *exclude_rows]
        limit = 1.0 if metric is CodeMetric.COSINE else math.inf
        return [
            SimilarImage(row=scored.row, similarity=min(score, limit), shared_neuron_ids=_shared(chosen, scored.code))
            for score, scored in self._best(query, count, without(True, excluded))
        ]

    def images_by_expression(self, expression: str, count: int) -> list[tuple[int, float]]:
        """As `IndexReader.images_by_expression`. Raises `Unavailable` where Qdrant does not answer, too."""
        parsed = parse_expression(expression, neuron_count=self._index.neuron_count)
        condition = matching(parsed)
        if condition is False:
            return []
        self._count.check()
        hidden = self._hidden_rows()
        maxima = self._index.maxima
        asked = [neuron_id for neuron_id in asked_to_fire(parsed) if maxima[neuron_id] > 0]
        best: list[tuple[int, float]] = []
        if asked:
            of = {neuron_id: float(maxima[neuron_id]) for neuron_id in asked}
            query = _Query(
                using=ACTIVATION,
                weights={neuron_id: 1 / maximum for neuron_id, maximum in of.items()},
                score=lambda code: _sum_of_shares(of, code),
            )
            found = self._best(query, count, without(condition, hidden))
            best = [(scored.row, score) for score, scored in found]
        if len(best) < count:
            # Images that match and fire none of these neurons tie at 0.
            rest = self._collection.first_rows(without(condition, hidden, firing=asked), count - len(best))
            best += [(row, 0.0) for row in rest]
        return best

    def count_by_expression(self, expression: str) -> int:
        """As `IndexReader.count_by_expression`. Raises `Unavailable` where Qdrant does not answer, too."""
        condition = matching(parse_expression(expression, neuron_count=self._index.neuron_count))
        if condition is False:
            return 0
        self._count.check()
        return self._collection.count(without(condition, self._hidden_rows()))

    def _hidden_rows(self) -> list[int]:
        rows: list[int] = self._index.hidden_rows.tolist()
        return rows

    def _best(self, query: _Query, count: int, condition: models.Filter | None) -> list[tuple[float, Scored]]:
        """The best by their exact scores, ties by row.

        Raises:
            Unavailable: Qdrant does not answer, or with codes that are not the index's.
        """
        limit = count + _SPARE
        while True:
            found = self._collection.search(query.using, query.weights, limit, condition)
            ranked = sorted(((query.score(scored.code), scored) for scored in found), key=_order)[:count]
            is_all = len(found) < limit or limit >= max(_CANDIDATE_LIMIT, count)
            # What was not sent has at most the last score, give or take what both sides may be rounded.
            if is_all or ranked[-1][0] > found[-1].score * query.unit * query.slack**2:
                self._check_codes(ranked)
                return ranked
            limit = min(4 * limit, max(_CANDIDATE_LIMIT, count))

    def _check_codes(self, ranked: Sequence[tuple[float, Scored]]) -> None:
        """Somebody may have written to the points since they were checked."""
        for _, scored in ranked:
            stored = self._index.code(scored.row)
            if not np.array_equal(stored.neuron_ids, scored.code.neuron_ids) or not np.array_equal(
                stored.values, scored.code.values
            ):
                raise Unavailable(
                    f"Qdrant's {self._collection.name!r} holds another code for row {scored.row} than the index: "
                    "delete the collection and its points in Qdrant, and push the index again: python -m index push"
                )


class _PointCount:
    """Whether Qdrant still has as many points as were written; counted with an answer, at most every ten seconds."""

    def __init__(self, collection: Collection, image_count: int, clock: Callable[[], float]) -> None:
        """Begin with a count that was right."""
        self._collection, self._image_count, self._clock = collection, image_count, clock
        self._right_at_s = clock()

    def check(self) -> None:
        """Count where it is time to, and with every answer while points are missing.

        Raises:
            Unavailable: Qdrant has another number of points, or does not answer.
        """
        now_s = self._clock()
        if now_s < self._right_at_s + _COUNT_INTERVAL_S:
            return
        count = self._collection.count()
        if count != self._image_count:
            raise Unavailable(
                f"Qdrant counts {count} points in {self._collection.name!r}; the index has {self._image_count} images: "
                "restore them, or delete the collection and its points in Qdrant and push the index again: "
                "python -m index push"
            )
        self._right_at_s = now_s


def _order(ranked: tuple[float, Scored]) -> tuple[float, int]:
    score, scored = ranked
    return -score, scored.row


def _cosine(kept: dict[int, float], chosen: dict[int, float], code: ImageCode, left_out: set[int]) -> float:
    """The product over the chosen neurons, over the norms of all that count."""
    square = 0.0
    for neuron, value in zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True):
        if neuron not in left_out:
            square += value * value
    length = 0.0
    for weight in kept.values():
        length += weight * weight
    return _inner_product(chosen, code) / (math.sqrt(length) * math.sqrt(square))


def _inner_product(chosen: dict[int, float], code: ImageCode) -> float:
    """Summed in the order in which the code is stored, as the index does: equal codes have equal scores."""
    product = 0.0
    for neuron, value in zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True):
        product += value * chosen.get(neuron, 0.0)
    return product


def _sum_of_shares(maxima: dict[int, float], code: ImageCode) -> float:
    activations = dict(zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True))
    score = 0.0
    for neuron, maximum in maxima.items():
        score += activations.get(neuron, 0.0) / maximum
    return score


def _shared(weights: dict[int, float], code: ImageCode) -> tuple[int, ...]:
    parts: Sequence[tuple[float, int]] = sorted(
        (-float(np.float32(weights[neuron]) * np.float32(value)), neuron)
        for neuron, value in zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True)
        if neuron in weights
    )
    return tuple(neuron for _, neuron in parts)
