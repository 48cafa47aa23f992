"""An index of codes that a test makes up, as Qdrant's side asks for it, and what both sides must answer."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from index.expression_evaluation import ExpressionEvaluation
from index.retrieval.exact import ExactSearch
from index.values import ImageRow
from phosphene.codes import ImageCode
from tests.index.shards import make_shards


class MadeUpIndex:
    """Dense float16 activations [rows, neurons]; some rows are quarantined, hidden, or their neurons left out."""

    def __init__(
        self,
        dense: np.ndarray,
        *,
        id_: str = "a" * 64,
        left_out: Collection[int] = (),
        quarantined: Collection[int] = (),
        hidden: Collection[int] = (),
        cuts: list[int] | None = None,
    ) -> None:
        self.dense = dense.copy()
        self.dense[list(quarantined)] = 0
        self.id, self.code_id = id_, "c" * 64
        self.row_count, self.neuron_count = dense.shape
        self.image_count = self.row_count - len(quarantined)
        self.left_out_neuron_ids = tuple(sorted(left_out))
        self.maxima = self.dense.max(axis=0).astype(np.float64)
        self.hidden_rows = np.array(sorted(set(hidden) - set(quarantined)), dtype=np.int64)
        self.quarantined = set(quarantined)
        excluded = np.array(sorted({*hidden, *quarantined}), dtype=np.int64)
        self._excluded, shards = excluded, make_shards(self.dense, cuts)
        self._search = ExactSearch(shards, neuron_count=self.neuron_count)
        self.expressions = ExpressionEvaluation(shards, maxima=self.maxima, excluded_rows=excluded)

    def code(self, row: int) -> ImageCode:
        values = self.dense[row].astype(np.float32)
        order = np.lexsort((np.arange(len(values)), -values))[: int((values > 0).sum())]
        return ImageCode(neuron_ids=order.astype(np.int32), values=values[order])

    def image(self, row: int) -> ImageRow:
        reason = "corrupt" if row in self.quarantined else None
        return ImageRow(
            row=row, uri=f"{row}.png", sha256=f"{row:064x}", label=None, caption=None, width=8, height=8,
            quarantine_reason=reason,
        )  # fmt: skip

    def similar(self, code: ImageCode, count: int, exclude_rows: Collection[int]) -> list[tuple[int, float]]:
        """What the index's own search finds."""
        left_out = np.isin(np.arange(self.neuron_count), self.left_out_neuron_ids)
        excluded = np.union1d(self._excluded, list(exclude_rows)).astype(np.int64)
        rows, cosines = self._search.nearest(
            code.neuron_ids, code.values, count, left_out=left_out, excluded_rows=excluded
        )
        return [(int(row), min(float(cosine), 1.0)) for row, cosine in zip(rows, cosines, strict=True)]

    def brute_force(self, code: ImageCode, count: int, exclude_rows: Collection[int] = ()) -> list[tuple[int, float]]:
        """Cosines in plain sums over the stored codes, best first, ties by row."""
        left_out, found = set(self.left_out_neuron_ids), []
        query = {
            neuron: float(value)
            for neuron, value in zip(code.neuron_ids.tolist(), code.values, strict=True)
            if neuron not in left_out
        }
        for row in sorted(set(range(self.row_count)) - {*self._excluded.tolist(), *exclude_rows}):
            stored = self.code(row)
            product = square = 0.0
            for neuron, value in zip(stored.neuron_ids.tolist(), stored.values.tolist(), strict=True):
                if neuron not in left_out:
                    product += value * query.get(neuron, 0.0)
                    square += value * value
            if product > 0:
                norm = 0.0
                for value in query.values():
                    norm += value * value
                found.append((row, min(product / (np.sqrt(norm) * np.sqrt(square)), 1.0)))
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:count]
