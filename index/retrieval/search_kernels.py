"""Loops of exact search over the shards of an index; compiled for the CPU by numba; knows nothing of Python objects.

A query's neurons are taken in order of postings per squared weight. The first of them are accumulated, so many that the
rest alone could not carry a row into the answer (as MaxScore does it, Turtle and Flood, 1995; the bound here is that of
Cauchy and Schwarz). Every row whose accumulated part could still reach the answer, with all that quantisation may hide,
is scored from its stored code; such rows are looked for under so many of these neurons that the others could not make
up their part alone. What is skipped cannot be in the answer, which is therefore that of brute force.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit
from numba.np.numpy_support import carray

from index.retrieval.bound_kernels import SLACK, accumulated_depth, lowest_sum, meeting_depth
from index.retrieval.scoring_kernels import (
    ENDLESS,
    NEURON_STARTS,
    NORMS,
    OFFSETS,
    ROWS,
    WORDS,
    at,
    fetch_ahead,
    fetch_code,
    load_query,
    offer,
    product_with,
)

__all__ = ["search_shards"]

# Weights are so quantised that the products of a row with 16-bit values stay below 2 ** 32 in sum.
_WEIGHT_SUM = 65_536
# A word of the accumulator has the mark of a shard's search above a row's sum, of whose products so many bits are cut.
_CUT_BITS = 8
_MARK_SHIFT = 32 - _CUT_BITS
_LAST_MARK = (1 << _CUT_BITS) - 1
# What a posting may hide above q x scale, in scales: half, and what rounding adds.
_HIDDEN = 0.51
# The rows to beat come from a first part of the postings: one in so many, and so many at least.
_SEED_SHARE = 5
_SEED_POSTINGS = 64
# Of these postings, the rows of the first: one in so many.
_SEED_ROWS_SHARE = 4
# Of a neuron's postings: what is asked for before its shard's turn.
_HEAD_BYTES = 1024
# Codes, and norms, that are on their way from memory while one is looked at.
_AHEAD = 8
_NORMS_AHEAD = 16
# So many rows are scored sooner than put in order.
_FEW = 128


@njit(nogil=True, cache=True)
@no_type_check
def search_shards(
    table,
    scales,
    norm_ranges,
    posting_counts,
    id_sample,
    neuron_ids,
    values,
    is_cosine,
    is_left_out,
    has_only,
    only,
    excluded_rows,
    accumulator,
    marks,
    candidates,
    sums,
    query,
    best_scores,
    best_rows,
):
    """Find the best rows of some shards.

    Args:
        table: [S, columns] int64: the shards (`index.retrieval.scoring_kernels`).
        scales: [S] float64: of the postings.
        norm_ranges: [S, 2] float32: the smallest norm of a row that is not empty, and the largest.
        posting_counts: [F] int64: of all shards together.
        id_sample: [0] of the integer type of the stored neuron ids.
        neuron_ids: [n] int32 of the query.
        values: [n] float32, above 0.
        is_cosine: or inner product.
        is_left_out: [F] bool; of length 0 where none is.
        has_only: whether only the neurons of `only` may carry products.
        only: [c] int32, rising.
        excluded_rows: [e] int64, rising.
        accumulator: [65536] uint32, no word marked above `marks`.
        marks: [1] uint32: the last mark that was given; written.
        candidates: [65536] uint32, anything.
        sums: [65536] uint32, anything.
        query: [F] float64, zero before and after.
        best_scores: [count] float64, written, best first.
        best_rows: [count] int64, written.

    Returns:
        How many rows were found; -1 for a query that nothing can be compared with.
    """
    ids, weights = np.empty(len(neuron_ids), dtype=np.int64), np.empty(len(neuron_ids))
    n, norm = load_query(neuron_ids, values, is_left_out, has_only, only, query, ids, weights)
    if n < 0:
        return -1
    length = norm if is_cosine else 1.0
    found = np.int64(0)  # A plain 0 is of a type of its own, and what takes it is compiled twice.
    if n:
        _order_neurons(ids[:n], weights[:n], posting_counts)
        begins, ends = _parts(table, ids[:n])
        shard_order = _order_shards(begins, ends, weights[:n])
        # Squared weights before each place, and from it on: their difference would lose a weak neuron beside a strong.
        inside, beyond = np.zeros(n + 1), np.zeros(n + 1)
        for place in range(n):
            inside[place + 1] = inside[place] + weights[place] * weights[place]
        for place in range(n - 1, -1, -1):
            beyond[place] = beyond[place + 1] + weights[place] * weights[place]
        for turn in range(len(shard_order)):
            shard = shard_order[turn]
            if turn == 0:
                _fetch_heads(table[shard], begins[shard], ends[shard])
            if turn + 1 < len(shard_order):
                after = shard_order[turn + 1]
                _fetch_heads(table[after], begins[after], ends[after])
            if marks[0] == _LAST_MARK:
                accumulator[:] = 0
                marks[0] = 0
            marks[0] += 1
            found = _search_shard(
                table[shard],
                scales[shard],
                norm_ranges[shard],
                id_sample,
                begins[shard],
                ends[shard],
                weights[:n],
                inside,
                beyond,
                length,
                is_cosine,
                is_left_out,
                excluded_rows,
                np.uint32(marks[0] << np.uint32(_MARK_SHIFT)),
                accumulator,
                candidates,
                sums,
                query,
                best_scores,
                best_rows,
                found,
            )
    for place in range(n):
        query[ids[place]] = 0.0
    return found


@njit(nogil=True, cache=True)
@no_type_check
def _fetch_heads(line, begins, ends):
    """Ask for the first postings of each neuron; the processor itself foresees the others."""
    for place in range(len(begins)):
        first = line[WORDS] + 4 * begins[place]
        for address in range(first, min(first + _HEAD_BYTES, line[WORDS] + 4 * ends[place]), 64):
            fetch_ahead(address)


@njit(nogil=True, cache=True)
@no_type_check
def _parts(table, ids):
    """Where the postings of each neuron begin and end in each shard."""
    begins = np.empty((len(table), len(ids)), dtype=np.int64)
    ends = np.empty((len(table), len(ids)), dtype=np.int64)
    for shard in range(len(table)):
        # The length is only an upper limit of what is read.
        starts = carray(at(table[shard, NEURON_STARTS]), ENDLESS, np.int64)
        for place in range(len(ids)):
            begins[shard, place] = starts[ids[place]]
            ends[shard, place] = starts[ids[place] + 1]
    return begins, ends


@njit(nogil=True, cache=True)
@no_type_check
def _order_neurons(ids, weights, posting_counts):
    """Put neurons in order of postings per squared weight, in place."""
    costs = np.empty(len(ids))
    for place in range(len(ids)):
        neuron, weight = ids[place], weights[place]
        cost = posting_counts[neuron] / (weight * weight)
        slot = place
        while slot > 0 and costs[slot - 1] > cost:
            costs[slot], ids[slot], weights[slot] = costs[slot - 1], ids[slot - 1], weights[slot - 1]
            slot -= 1
        costs[slot], ids[slot], weights[slot] = cost, neuron, weight


@njit(nogil=True, cache=True)
@no_type_check
def _order_shards(begins, ends, weights):
    """The shards, first those with the largest share of the rare neurons' postings."""
    # Of the type that `_order_rows` sorts: another would be compiled too.
    promise = np.zeros(len(begins), dtype=np.float32)
    for place in range(len(weights)):
        count = np.int64(0)
        for shard in range(len(begins)):
            count += ends[shard, place] - begins[shard, place]
        if count:
            share = weights[place] * weights[place] / count
            for shard in range(len(begins)):
                promise[shard] -= share * (ends[shard, place] - begins[shard, place])
    return np.argsort(promise)


@njit(nogil=True, cache=True)
@no_type_check
def _search_shard(
    line,
    scale,
    norm_range,
    id_sample,
    begins,
    ends,
    weights,
    inside,
    beyond,
    length,
    is_cosine,
    is_left_out,
    excluded_rows,
    mark,
    accumulator,
    candidates,
    sums,
    query,
    best_scores,
    best_rows,
    found,
):
    """Search one shard; returns how many rows are known now."""
    n = len(weights)
    total = 0.0
    posting_count = 0
    for place in range(n):
        total += weights[place]
        posting_count += ends[place] - begins[place]
    if posting_count == 0:
        return found
    words = carray(at(line[WORDS]), ENDLESS, np.uint32)
    norms = carray(at(line[NORMS]), line[ROWS], np.float32)
    per_weight = (_WEIGHT_SUM - n) / total
    # An accumulated part is at most (sum + hidden) x unit; each cut hides less than 1.
    unit = scale / per_weight * (1 << _CUT_BITS)
    hidden = _HIDDEN * _WEIGHT_SUM / (1 << _CUT_BITS) + n
    count = len(best_scores)
    taken = np.int64(0)
    if found < count:
        limit = max(posting_count // _SEED_SHARE, _SEED_POSTINGS)
        taken = _take(words, begins, ends, weights, per_weight, taken, n, limit, mark, accumulator)
        found = _seed(
            line, words, norms, begins, ends, taken, limit // _SEED_ROWS_SHARE, id_sample, length, is_cosine,
            is_left_out, excluded_rows, mark, accumulator, query, best_scores, best_rows, found,
        )  # fmt: skip
    worst = best_scores[found - 1] * SLACK if found == count else 0.0
    depth = accumulated_depth(inside, beyond, length, worst, is_cosine, norm_range[1], taken)
    _take(words, begins, ends, weights, per_weight, taken, depth, np.int64(ENDLESS), mark, accumulator)
    met_by = meeting_depth(inside, beyond, depth, length, worst, is_cosine, norm_range[1])
    slope, level = lowest_sum(inside, beyond, depth, length, worst, is_cosine, unit, hidden)
    known = _collect(
        words, begins, ends, met_by, norms, line[NORMS], norm_range, slope, level, mark, accumulator, candidates, sums
    )  # fmt: skip
    for place in range(known):
        fetch_ahead(line[OFFSETS] + 8 * np.int64(candidates[place]))
    order = _order_rows(candidates[:known], sums, norms, slope, hidden, is_cosine)
    for place in range(min(known, _AHEAD)):
        fetch_code(line, candidates[order[place]], id_sample.itemsize)
    for place in range(known):
        if place + _AHEAD < known:
            fetch_code(line, candidates[order[place + _AHEAD]], id_sample.itemsize)
        row = candidates[order[place]]
        if np.float32(sums[order[place]]) < slope * norms[row] + level:
            continue
        product = product_with(line, row, id_sample, query)
        # `offer` would find the same, but sums a norm first.
        if product < (worst * length * norms[row] if is_cosine else worst):
            continue
        found = offer(
            line, np.int64(row), product, id_sample, length, is_cosine, is_left_out, excluded_rows, best_scores,
            best_rows, found,
        )  # fmt: skip
        if found == count and best_scores[found - 1] * SLACK > worst:
            worst = best_scores[found - 1] * SLACK
            slope, level = lowest_sum(inside, beyond, depth, length, worst, is_cosine, unit, hidden)
    return found


@njit(nogil=True, cache=True)
@no_type_check
def _collect(
    words, begins, ends, met_by, norms, norms_address, norm_range, slope, level, mark, accumulator, candidates,
    kept_sums,
):  # fmt: skip
    """Find the rows of the first neurons whose sum is at least slope x norm + level; returns how many."""
    met = 0
    floor = (min(slope * norm_range[0], slope * norm_range[1]) + level) * np.float32(SLACK)
    bar = mark + np.uint32(max(min(floor, np.float32((1 << _MARK_SHIFT) - 1)), np.float32(0.0)))
    for place in range(met_by):
        for index in range(begins[place], ends[place]):
            row = words[index] >> np.uint32(16)
            word = accumulator[row]
            if word >= bar:
                fetch_ahead(norms_address + 4 * np.int64(row))
                candidates[met] = row
                kept_sums[met] = word - mark
                met += 1
                # It is not met again.
                accumulator[row] = 0
    known = 0
    for place in range(met):
        row, sums = candidates[place], kept_sums[place]
        if np.float32(sums) >= slope * norms[row] + level:
            candidates[known] = row
            kept_sums[known] = sums
            known += 1
    return known


@njit(nogil=True, cache=True)
@no_type_check
def _order_rows(candidates, sums, norms, slope, hidden, is_cosine):
    """Places of the candidates, where there are many the most promising first: soon no other can enter."""
    if len(candidates) <= _FEW:
        return np.arange(len(candidates))
    promises = np.empty(len(candidates), dtype=np.float32)
    for place in range(len(candidates)):
        norm, sum_limit = norms[candidates[place]], np.float32(sums[place]) + np.float32(hidden)
        promises[place] = -sum_limit / norm if is_cosine else slope * norm - sum_limit
    return np.argsort(promises)


@njit(nogil=True, cache=True)
@no_type_check
def _take(words, begins, ends, weights, per_weight, first, last, limit, mark, accumulator):
    """Accumulate the postings of neurons from `first` on, to `last` or to a number of postings; returns where."""
    read = 0
    for place in range(first, last):
        read += ends[place] - begins[place]
        if read > limit and place > first:
            return place
        weight = np.uint32(weights[place] * per_weight + 1.0)
        for index in range(begins[place], ends[place]):
            word = words[index]
            row = word >> np.uint32(16)
            # What an earlier search left has a lower mark.
            before = max(accumulator[row], mark)
            accumulator[row] = before + ((word & np.uint32(0xFFFF)) * weight >> np.uint32(_CUT_BITS))
    return last


@njit(nogil=True, cache=True)
@no_type_check
def _seed(
    line, words, norms, begins, ends, taken, limit, id_sample, length, is_cosine, is_left_out, excluded_rows, mark,
    accumulator, query, best_scores, best_rows, found,
):  # fmt: skip
    """Score rows with a large accumulated part, so that there is something to beat.

    They are the best of the first neurons' postings, of `limit` or as many as it takes to find enough rows.
    """
    count = len(best_scores)
    parts = np.zeros(count, dtype=np.float32)
    rows = np.empty(count, dtype=np.int64)
    known, walked = 0, 0
    for place in range(taken):
        if known == count and walked >= limit:
            break
        walked += ends[place] - begins[place]
        for index in range(begins[place], ends[place]):
            if is_cosine:
                later = words[min(index + _NORMS_AHEAD, ends[place] - 1)] >> np.uint32(16)
                fetch_ahead(line[NORMS] + 4 * np.int64(later))
            row = np.int64(words[index] >> np.uint32(16))
            part = np.float32(accumulator[row] - mark)
            if is_cosine:
                part /= norms[row]
            if known == count and part <= parts[known - 1]:
                continue
            is_new = True
            for other in range(known):
                if rows[other] == row:
                    is_new = False
                    break
            if not is_new:
                continue
            slot = min(known, count - 1)
            known = min(known + 1, count)
            while slot > 0 and parts[slot - 1] < part:
                parts[slot], rows[slot] = parts[slot - 1], rows[slot - 1]
                slot -= 1
            parts[slot], rows[slot] = part, row
    for place in range(known):
        fetch_ahead(line[OFFSETS] + 8 * rows[place])
    for place in range(known):
        fetch_code(line, rows[place], id_sample.itemsize)
    for place in range(known):
        # It is not met again.
        accumulator[rows[place]] = 0
        product = product_with(line, rows[place], id_sample, query)
        found = offer(
            line, rows[place], product, id_sample, length, is_cosine, is_left_out, excluded_rows, best_scores,
            best_rows, found,
        )  # fmt: skip
    return found
