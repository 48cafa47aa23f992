"""Which images fire what a neuron expression asks for: found through postings, counted, and ranked.

Equal to brute force over the stored activations. Images are ranked by the sum, over the neurons that the expression
asks to fire, of activation / the neuron's maximum over the index: each such neuron counts alike, once, and on every
image that matches, whether or not its own term is the one that holds. A neuron is asked to fire by `>` or `>=` outside
an odd number of `!`, or by `<` or `<=` inside one. Ties go by lower row; where no neuron is asked to fire (`!55`), all
matches tie at 0. Knows nothing of files or of how an expression is written.

    evaluation = ExpressionEvaluation(shards, maxima=..., excluded_rows=...)
    evaluation.count(parse_expression("12>0.5 & !55"))
    evaluation.best(expression, 24)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_, or_
from typing import assert_never

import numpy as np
from jaxtyping import Float64, Int64

from index.expression import And, Comparison, Expression, Not, Or, Term
from index.posting_values import activations_on, rows_above
from index.retrieval.exact import SearchShard
from index.row_sets import RowSet

__all__ = ["ExpressionEvaluation", "asked_to_fire"]


class ExpressionEvaluation:
    """Answers neuron expressions over the shards of an index."""

    maxima: Float64[np.ndarray, " neurons"]
    """What a neuron's activations are divided by in a score: its largest."""
    excluded_rows: Int64[np.ndarray, " excluded"]
    """Rows of the index that no answer holds, rising."""

    def __init__(
        self,
        shards: Sequence[SearchShard],
        *,
        maxima: Float64[np.ndarray, " neurons"],
        excluded_rows: Int64[np.ndarray, " excluded"] | None = None,
    ) -> None:
        """Answer over `shards`.

        Args:
            shards: in order of their rows.
            maxima: each neuron's largest stored activation; 0 for a dead one.
            excluded_rows: rows of the index that no answer holds, rising: quarantined and taken down.
        """
        self._shards = list(shards)
        self.maxima = maxima
        self.excluded_rows = np.zeros(0, dtype=np.int64) if excluded_rows is None else excluded_rows
        # Who asks for the best asks how many there are, too.
        self._counted: tuple[Expression, int] | None = None

    def without(self, excluded_rows: Int64[np.ndarray, " excluded"]) -> ExpressionEvaluation:
        """Return one that answers with the same scores and leaves out other rows."""
        return ExpressionEvaluation(self._shards, maxima=self.maxima, excluded_rows=excluded_rows)

    def count(self, expression: Expression) -> int:
        """Return how many images match; nothing is read where `best` was asked for just before."""
        counted = self._counted
        if counted is not None and counted[0] == expression:
            return counted[1]
        return sum(self._matches(shard, expression).count(shard.postings.row_count) for shard in self._shards)

    def best(
        self, expression: Expression, count: int
    ) -> tuple[Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]:
        """Return up to `count` matching rows of the index with their scores, best first, ties by lower row."""
        neuron_ids = asked_to_fire(expression)
        rows, scores, total = np.zeros(0, dtype=np.int64), np.zeros(0), 0
        for shard in self._shards:
            matching = self._matches(shard, expression).rows(shard.postings.row_count)
            total += len(matching)
            matching = matching[self._may_be_among_best(shard, matching, neuron_ids, count)]
            rows = np.concatenate([rows, matching + shard.start])
            scores = np.concatenate([scores, self._scores(shard, matching, neuron_ids)])
            order = np.lexsort((rows, -scores))[:count]
            rows, scores = rows[order], scores[order]
        self._counted = (expression, total)
        return rows, scores

    def _matches(self, shard: SearchShard, expression: Expression) -> RowSet:
        bounds = np.searchsorted(self.excluded_rows, [shard.start, shard.start + shard.postings.row_count])
        excluded = RowSet(listed=self.excluded_rows[bounds[0] : bounds[1]] - shard.start)
        return _rows(shard, expression) & ~excluded

    def _scores(
        self, shard: SearchShard, rows: Int64[np.ndarray, " rows"], neuron_ids: Sequence[int]
    ) -> Float64[np.ndarray, " rows"]:
        scores = np.zeros(len(rows))
        for neuron_id in neuron_ids:
            if self.maxima[neuron_id] > 0:
                scores += activations_on(shard, neuron_id, rows) / self.maxima[neuron_id]
        return scores

    def _may_be_among_best(
        self, shard: SearchShard, rows: Int64[np.ndarray, " rows"], neuron_ids: Sequence[int], count: int
    ) -> Int64[np.ndarray, " kept"]:
        """Return the places of the rows that can be among the shard's best, judged by the postings' rounded values."""
        if len(rows) <= count:
            return np.arange(len(rows))
        rounded, error = np.zeros(shard.postings.row_count), 0.0
        for neuron_id in neuron_ids:
            if self.maxima[neuron_id] > 0:
                firing = shard.postings.rows(neuron_id)
                rounded[firing] += shard.postings.values(neuron_id) / self.maxima[neuron_id]
                error += shard.postings.scale / self.maxima[neuron_id]
        scores = rounded[rows]
        if not error:
            return np.arange(count)
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        return np.flatnonzero(scores >= least - 2 * error)


def asked_to_fire(expression: Expression) -> list[int]:
    """Return the neurons that an expression asks to fire, ascending, each once."""
    return sorted(_asked(expression, negated=False))


def _asked(expression: Expression, *, negated: bool) -> set[int]:
    match expression:
        case Term(neuron_id=neuron_id, comparison=comparison):
            asks = comparison in (Comparison.GREATER, Comparison.GREATER_OR_EQUAL)
            return {neuron_id} if asks is not negated else set()
        case Not(part=part):
            return _asked(part, negated=not negated)
        case And(parts=parts) | Or(parts=parts):
            return set().union(*(_asked(part, negated=negated) for part in parts))
        case _:
            assert_never(expression)


def _rows(shard: SearchShard, expression: Expression) -> RowSet:
    match expression:
        case Term():
            return _term_rows(shard, expression)
        case Not(part=part):
            return ~_rows(shard, part)
        case And(parts=parts):
            return reduce(and_, (_rows(shard, part) for part in parts))
        case Or(parts=parts):
            return reduce(or_, (_rows(shard, part) for part in parts))
        case _:
            assert_never(expression)


def _term_rows(shard: SearchShard, term: Term) -> RowSet:
    match term.comparison:
        case Comparison.GREATER:
            return _above(shard, term, or_equal=False)
        case Comparison.GREATER_OR_EQUAL:
            return _above(shard, term, or_equal=True)
        case Comparison.LESS:
            return ~_above(shard, term, or_equal=True)
        case Comparison.LESS_OR_EQUAL:
            return ~_above(shard, term, or_equal=False)
        case _:
            assert_never(term.comparison)


def _above(shard: SearchShard, term: Term, *, or_equal: bool) -> RowSet:
    if or_equal and term.threshold == 0:
        return RowSet(listed=np.zeros(0, dtype=np.int64), is_complement=True)
    return RowSet(listed=rows_above(shard, term.neuron_id, term.threshold, or_equal=or_equal))
