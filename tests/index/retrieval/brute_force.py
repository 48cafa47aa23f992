"""What exact search must equal, in plain Python; and shards made of plain codes."""

import math
from collections.abc import Sequence

import numpy as np

from index.retrieval.exact import SearchShard
from index.retrieval.postings import build_postings, row_norms
from index.values import CodeMetric

Code = dict[int, float]
"""Activations by neuron, in the order in which they are stored."""


def make_shard(codes: Sequence[Code], *, start: int, neuron_count: int, id_type: type = np.int32) -> SearchShard:
    offsets = np.cumsum([0, *(len(code) for code in codes)]).astype(np.int64)
    neuron_ids = np.array([neuron for code in codes for neuron in code], dtype=id_type)
    values = np.array([value for code in codes for value in code.values()], dtype=np.float16)
    return SearchShard(
        start=start,
        postings=build_postings(offsets, neuron_ids, values, neuron_count=neuron_count),
        offsets=offsets,
        neuron_ids=neuron_ids,
        values=values,
        norms=row_norms(offsets, values),
    )


def make_shards(codes: Sequence[Code], sizes: Sequence[int], *, neuron_count: int, id_type: type = np.int32):
    shards, start = [], 0
    for size in sizes:
        part = codes[start : start + size]
        shards.append(make_shard(part, start=start, neuron_count=neuron_count, id_type=id_type))
        start += size
    assert start == len(codes)
    return shards


def brute_force(
    codes: Sequence[Code],
    query: Code,
    count: int,
    *,
    metric: CodeMetric = CodeMetric.COSINE,
    left_out: set[int] = frozenset(),
    only: set[int] | None = None,
    excluded: set[int] = frozenset(),
) -> list[tuple[int, float]]:
    counted = {neuron: float(np.float32(value)) for neuron, value in query.items() if neuron not in left_out}
    length = math.sqrt(_sum(value * value for value in counted.values()))
    found = []
    for row, code in enumerate(codes):
        stored = {neuron: float(np.float16(value)) for neuron, value in code.items() if neuron not in left_out}
        shared = [neuron for neuron in stored if neuron in counted and (only is None or neuron in only)]
        if row in excluded or not shared:
            continue
        score = _sum(stored[neuron] * counted[neuron] for neuron in shared)
        if metric is CodeMetric.COSINE:
            score /= length * math.sqrt(_sum(value * value for value in stored.values()))
        found.append((row, score))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:count]


def _sum(terms) -> float:
    """In order, unlike `sum`, which compensates from Python 3.12 on."""
    total = 0.0
    for term in terms:
        total += term
    return total
