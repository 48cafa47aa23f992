"""Answers to neuron expressions equal brute force over the stored activations."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.expression import And, Comparison, Expression, Not, Or, Term, parse_expression
from index.expression_evaluation import ExpressionEvaluation, asked_to_fire
from index.posting_values import activations_on, histogram, rows_above
from index.retrieval.postings import ShardPostings
from index.row_sets import RowSet
from tests.index.shards import cut_places, make_shards, sparse_activations
from tests.index.test_expression import expressions


def _holds(expression: Expression, dense: np.ndarray) -> np.ndarray:
    match expression:
        case Term():
            values, threshold = dense[:, expression.neuron_id].astype(np.float64), expression.threshold
            comparisons = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}
            return comparisons[expression.comparison.value](values, threshold)
        case Not():
            return ~_holds(expression.part, dense)
        case And():
            return np.all([_holds(part, dense) for part in expression.parts], axis=0)
        case Or():
            return np.any([_holds(part, dense) for part in expression.parts], axis=0)


def _asked(expression: Expression) -> list[int]:
    """Whose activation, raised on its own, can turn the answer from no to yes: read off the written form."""
    match expression:
        case Not(part=Not(part=part)):
            return _asked(part)
        case Not(part=And(parts=parts) | Or(parts=parts)):
            return sorted({neuron for part in parts for neuron in _asked(Not(part=part))})
        case Not(part=Term() as term):
            return [term.neuron_id] if "<" in term.comparison.value else []
        case Term():
            return [expression.neuron_id] if ">" in expression.comparison.value else []
        case And(parts=parts) | Or(parts=parts):
            return sorted({neuron for part in parts for neuron in _asked(part)})
    raise AssertionError(expression)


def _scores(dense: np.ndarray, neuron_ids: list[int]) -> np.ndarray:
    scores = np.zeros(len(dense))
    for neuron_id in neuron_ids:
        values = dense[:, neuron_id].astype(np.float64)
        scores += values / values.max() if values.max() > 0 else 0
    return scores


@settings(max_examples=300)
@given(st.data())
def test_answers_equal_brute_force(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations())
    stored = [float(value) for value in np.unique(dense)[:50]]
    near = [value * factor for value in stored for factor in (1.0, 1 - 1e-6, 1 + 1e-6)]
    thresholds = st.sampled_from(near) | st.floats(0, 1000)
    expression = data.draw(expressions(st.integers(0, dense.shape[1] - 1), thresholds))
    excluded = np.array(sorted(data.draw(st.sets(st.integers(0, len(dense) - 1), max_size=5))), dtype=np.int64)
    evaluation = ExpressionEvaluation(
        make_shards(dense, data.draw(cut_places(len(dense)))),
        maxima=dense.max(axis=0).astype(np.float64),
        excluded_rows=excluded,
    )
    matching = np.setdiff1d(np.flatnonzero(_holds(expression, dense)), excluded)
    assert evaluation.count(expression) == len(matching)
    assert asked_to_fire(expression) == _asked(expression)
    all_scores = _scores(dense, _asked(expression))
    count = data.draw(st.integers(1, 50))
    due = matching[np.lexsort((matching, -all_scores[matching]))][:count]
    rows, scores = evaluation.best(expression, count)
    assert rows.tolist() == due.tolist()
    assert scores.tolist() == all_scores[due].tolist()


def test_a_large_shard_with_many_near_ties() -> None:
    generator = np.random.default_rng(0)
    dense = np.zeros((3000, 6), dtype=np.float16)
    dense[:, :5] = np.where(generator.random((3000, 5)) < 0.3, 1 + generator.integers(0, 9, (3000, 5)) / 1024, 0)
    dense[7, 5] = 60000.0  # One huge activation makes the step of the shard larger than all differences.
    evaluation = ExpressionEvaluation(make_shards(dense, [1000]), maxima=dense.max(axis=0).astype(np.float64))
    for text in ("0", "0 & 1", "0>1.004 & !2", "(0 | 1) & 3<1.002", "!0", "5", "0>=1.0048828125"):
        expression = parse_expression(text)
        matching = np.flatnonzero(_holds(expression, dense))
        scores = _scores(dense, _asked(expression))
        rows, found = evaluation.best(expression, 20)
        due = matching[np.lexsort((matching, -scores[matching]))][:20]
        assert evaluation.count(expression) == len(matching)
        assert rows.tolist() == due.tolist()
        assert found.tolist() == scores[due].tolist()


def test_rounded_values_that_put_the_second_first() -> None:
    step = 60000 / 65535
    dense = np.zeros((3, 3), dtype=np.float16)
    dense[0] = [1.6 * step, 0.6 * step, 0]  # Rounded: 2 + 1 steps.
    dense[1] = [1.4 * step, 1.4 * step, 0]  # Rounded: 1 + 1 steps.
    dense[2, 2] = 60000.0
    evaluation = ExpressionEvaluation(make_shards(dense), maxima=np.array([2.0, 2.0, 60000.0]))
    assert evaluation.best(parse_expression("0 & 1"), 1)[0].tolist() == [1]


@given(st.data())
def test_histograms_and_thresholds_equal_numpys(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations())
    shards = make_shards(dense, data.draw(cut_places(len(dense))))
    excluded = np.array(sorted(data.draw(st.sets(st.integers(0, len(dense) - 1), max_size=5))), dtype=np.int64)
    stored = [float(value) for value in np.unique(dense)[:50]]
    edges = data.draw(st.lists(st.sampled_from(stored) | st.floats(0, 1000), min_size=2, max_size=6, unique=True))
    edges = np.array(sorted(edges), dtype=np.float64)
    kept = np.setdiff1d(np.arange(len(dense)), excluded)
    for neuron_id in range(dense.shape[1]):
        values = dense[kept, neuron_id].astype(np.float64)
        due = np.histogram(values[values > 0], bins=edges)[0]
        assert histogram(shards, neuron_id, edges, excluded_rows=excluded).tolist() == due.tolist()
        for shard in shards:
            part = dense[shard.start : shard.start + shard.postings.row_count, neuron_id].astype(np.float64)
            above = rows_above(shard, neuron_id, float(edges[0]), or_equal=False)
            assert above.tolist() == np.flatnonzero(part > edges[0]).tolist()
            assert activations_on(shard, neuron_id, np.arange(len(part))).tolist() == part.tolist()


ROWS = st.sets(st.integers(0, 19)).map(lambda rows: RowSet(listed=np.array(sorted(rows), dtype=np.int64)))


@given(ROWS, ROWS, st.booleans(), st.booleans())
def test_row_sets_are_sets(first: RowSet, second: RowSet, first_inverted: bool, second_inverted: bool) -> None:
    first, second = ~first if first_inverted else first, ~second if second_inverted else second
    a, b = set(first.rows(20).tolist()), set(second.rows(20).tolist())
    for found, due in ((first & second, a & b), (first | second, a | b), (~first, set(range(20)) - a)):
        assert found.rows(20).tolist() == sorted(due)
        assert found.count(20) == len(due)


def test_a_bare_neuron_fires() -> None:
    assert asked_to_fire(parse_expression("3 & !4 & 5<1 & !(6<1 | 7)")) == [3, 6]
    assert Comparison.GREATER.value == ">"
    dense = np.array([[0, 1], [2, 0]], dtype=np.float16)
    evaluation = ExpressionEvaluation(make_shards(dense), maxima=np.array([2.0, 1.0]))
    assert evaluation.best(parse_expression("0"), 5)[0].tolist() == [1]
    with pytest.raises(IndexError):
        evaluation.best(parse_expression("9"), 5)


def test_the_best_and_their_number_are_found_in_one_pass() -> None:
    asked: list[int] = []

    class Postings(ShardPostings):
        def rows(self, neuron_id: int) -> np.ndarray:
            asked.append(neuron_id)
            return super().rows(neuron_id)

    dense = np.array([[1, 2], [0, 3], [4, 0]], dtype=np.float16)
    [shard] = make_shards(dense)
    parts = {field.name: getattr(shard.postings, field.name) for field in fields(shard.postings)}
    shards = [replace(shard, postings=Postings(**parts))]
    evaluation = ExpressionEvaluation(shards, maxima=dense.max(axis=0).astype(np.float64))
    assert evaluation.best(parse_expression("0"), 1)[0].tolist() == [2]
    asked.clear()
    assert evaluation.count(parse_expression("0")) == 2
    assert asked == []
    assert evaluation.count(parse_expression("0 & 1")) == 1
    assert evaluation.count(parse_expression("0")) == 2
