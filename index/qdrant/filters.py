"""Neuron expressions as Qdrant filters: the same images match; knows nothing of collections or of ranking.

A neuron that fires is a value of `code[].neuron`; a threshold is one element of `code` that has both the neuron and
an activation beyond it. Qdrant may read the last digit of a number otherwise than it was written, so that it is asked
to compare with what lies halfway between two activations that the index can store (float16): nothing is near that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import numpy as np
from qdrant_client import models

from index.expression import And, Comparison, Expression, Not, Or, Term

__all__ = ["firing_any", "matching", "without"]

_LARGEST = float(np.finfo(np.float16).max)

Condition = models.Filter | bool
"""A filter, or what is the same for all images."""


def matching(expression: Expression) -> Condition:
    """Return what an image must meet that an expression asks for."""
    match expression:
        case Term():
            return _term(expression)
        case Not(part=part):
            return _negated(matching(part))
        case And(parts=parts):
            return _all(matching(part) for part in parts)
        case Or(parts=parts):
            return _any(matching(part) for part in parts)
        case _:
            assert_never(expression)


def firing_any(neuron_ids: Sequence[int]) -> models.Filter:
    """Return what an image must meet that fires one of some neurons."""
    return models.Filter(must=[models.FieldCondition(key="code[].neuron", match=models.MatchAny(any=list(neuron_ids)))])


def without(condition: Condition, rows: Iterable[int], *, firing: Sequence[int] = ()) -> models.Filter | None:
    """Return a condition less some rows, and less the images that fire one of some neurons; None: no condition.

    The condition must not be False: nothing needs to be asked then.
    """
    excluded: list[models.Condition] = []
    listed = list(rows)
    if listed:
        excluded.append(models.HasIdCondition(has_id=list(listed)))
    if firing:
        excluded.append(firing_any(firing))
    if isinstance(condition, bool):
        return models.Filter(must_not=excluded) if excluded else None
    return models.Filter(must=[condition], must_not=excluded) if excluded else condition


def _term(term: Term) -> Condition:
    match term.comparison:
        case Comparison.GREATER:
            return _above(term, or_equal=False)
        case Comparison.GREATER_OR_EQUAL:
            return _above(term, or_equal=True)
        case Comparison.LESS:
            return _negated(_above(term, or_equal=True))
        case Comparison.LESS_OR_EQUAL:
            return _negated(_above(term, or_equal=False))
        case _:
            assert_never(term.comparison)


def _above(term: Term, *, or_equal: bool) -> Condition:
    if term.threshold == 0:
        return True if or_equal else firing_any([term.neuron_id])
    bound = _between(term.threshold, or_equal=or_equal)
    if bound is None:
        return False
    both = models.Filter(
        must=[
            models.FieldCondition(key="neuron", match=models.MatchValue(value=term.neuron_id)),
            models.FieldCondition(key="activation", range=models.Range(gt=bound)),
        ]
    )
    return models.Filter(must=[models.NestedCondition(nested=models.Nested(key="code", filter=both))])


def _between(threshold: float, *, or_equal: bool) -> float | None:
    """Return what lies between the activations that pass a threshold and those that do not; None: none passes."""
    if threshold > _LARGEST or (threshold == _LARGEST and not or_equal):
        return None
    nearest = np.float16(threshold)
    # NumPy would round the threshold to float16 to compare.
    passes = float(nearest) >= threshold if or_equal else float(nearest) > threshold
    least = nearest if passes else np.nextafter(nearest, np.float16(np.inf))
    return (float(least) + float(np.nextafter(least, np.float16(0)))) / 2


def _all(conditions: Iterable[Condition]) -> Condition:
    listed = list(conditions)
    if any(condition is False for condition in listed):
        return False
    filters: list[models.Condition] = [condition for condition in listed if not isinstance(condition, bool)]
    return models.Filter(must=filters) if filters else True


def _any(conditions: Iterable[Condition]) -> Condition:
    listed = list(conditions)
    if any(condition is True for condition in listed):
        return True
    filters: list[models.Condition] = [condition for condition in listed if not isinstance(condition, bool)]
    return models.Filter(should=filters) if filters else False


def _negated(condition: Condition) -> Condition:
    return not condition if isinstance(condition, bool) else models.Filter(must_not=[condition])
