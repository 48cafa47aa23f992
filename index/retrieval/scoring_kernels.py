"""Scoring rows from their stored codes, and keeping the best; compiled for the CPU by numba; knows nothing of postings.

Kernels find a shard's arrays by their addresses: one call serves any number of shards. A shard is a line of integers:
its first row, its rows, and the addresses of its arrays, as `COLUMNS` has them.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from index.retrieval.posting_kernels import unpacked

__all__ = [
    "COLUMNS",
    "ENDLESS",
    "NEURON_STARTS",
    "NORMS",
    "OFFSETS",
    "ROWS",
    "WORDS",
    "at",
    "best_of_rows",
    "fetch_ahead",
    "fetch_code",
    "load_query",
    "offer",
    "product_with",
]

COLUMNS = ("start", "row_count", "neuron_starts", "words", "offsets", "neuron_ids", "values", "norms")
"""What the line of a shard says."""
START, ROWS, NEURON_STARTS, WORDS, OFFSETS, NEURON_IDS, VALUES, NORMS = range(len(COLUMNS))
ENDLESS = 1 << 40
"""Length of an array whose length nobody asks for."""
# Rows that are on their way from memory while one is scored: first where their codes begin, then the codes.
_AHEAD = 8


@intrinsic
def at(typing_context, address):  # type: ignore[no-untyped-def]
    """An address as a pointer, for `carray`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def fetch_ahead(typing_context, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address, which need not be valid."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = ir.IntType(32)
        pointer = ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # For reading, into all levels, as data.
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@njit(nogil=True, cache=True)
@no_type_check
def load_query(neuron_ids, values, is_left_out, has_only, only, query, ids, weights):
    """Spread a query over the neurons, without those that do not count.

    Args:
        neuron_ids: [n] int32, none twice.
        values: [n] float32, above 0.
        is_left_out: [F] bool; of length 0 where none is.
        has_only: whether only the neurons of `only` may carry products.
        only: [c] int32, rising.
        query: [F] float64, zero; written.
        ids: [n] int64, written: the neurons that carry products.
        weights: [n] float64, written: their values.

    Returns:
        How many carry products, and the norm of all that count; -1 where there is no such neuron, or an activation is
        NaN or infinite.
    """
    square, n = 0.0, 0
    for place in range(len(neuron_ids)):
        # Not left to numpy, whose three calls take as long as all else beside the search itself.
        if not (0 <= neuron_ids[place] < len(query) and np.isfinite(values[place])):
            return -1, 0.0
    for place in range(len(neuron_ids)):
        neuron, weight = neuron_ids[place], np.float64(values[place])
        if weight <= 0 or (len(is_left_out) and is_left_out[neuron]):
            continue
        square += weight * weight
        if has_only and not _holds(only, neuron):
            continue
        ids[n], weights[n], query[neuron] = neuron, weight, weight
        n += 1
    return n, np.sqrt(square)


@njit(nogil=True, cache=True)
@no_type_check
def best_of_rows(
    table,
    id_sample,
    rows,
    neuron_ids,
    values,
    is_cosine,
    is_left_out,
    has_only,
    only,
    excluded_rows,
    query,
    best_scores,
    best_rows,
):
    """Score given rows and keep the best; rows that share no neuron that counts are not similar.

    Args:
        table: [S, columns] int64: the shards, in the order of their rows.
        id_sample: [0] of the integer type of the stored neuron ids.
        rows: [r] int64, of the index, in any order; negative ones are passed over.
        neuron_ids: see `load_query`, as the next ones but these.
        values: see there.
        is_cosine: or inner product.
        is_left_out: see there.
        has_only: see there.
        only: see there.
        excluded_rows: [e] int64, rising.
        query: [F] float64, zero before and after.
        best_scores: [count] float64, written, best first.
        best_rows: [count] int64, written.

    Returns:
        How many rows were found; -1 for a query that nothing can be compared with.
    """
    ids, weights = np.empty(len(neuron_ids), dtype=np.int64), np.empty(len(neuron_ids))
    n, length = load_query(neuron_ids, values, is_left_out, has_only, only, query, ids, weights)
    if n < 0:
        return -1
    shards = np.empty(len(rows), dtype=np.int64)
    found = np.int64(0)
    for step in range(len(rows) + 2 * _AHEAD):
        place = step
        if place < len(rows):
            shards[place] = np.searchsorted(table[:, START], rows[place], side="right") - 1
            if rows[place] >= 0:
                line = table[shards[place]]
                fetch_ahead(line[OFFSETS] + 8 * (rows[place] - line[START]))
        place = step - _AHEAD
        if 0 <= place < len(rows) and rows[place] >= 0:
            line = table[shards[place]]
            fetch_code(line, rows[place] - line[START], id_sample.itemsize)
        place = step - 2 * _AHEAD
        if place >= 0 and rows[place] >= 0:
            line = table[shards[place]]
            row = rows[place] - line[START]
            found = offer(
                line,
                row,
                product_with(line, row, id_sample, query),
                id_sample,
                length,
                is_cosine,
                is_left_out,
                excluded_rows,
                best_scores,
                best_rows,
                found,
            )
    for place in range(n):
        query[ids[place]] = 0.0
    return found


@njit(nogil=True, cache=True)
@no_type_check
def offer(
    line, row, product, id_sample, length, is_cosine, is_left_out, excluded_rows, best_scores, best_rows, found
):  # fmt: skip
    """Score a row of a shard by its product and keep it where it is among the best; returns how many are known.

    A row that is known already may be offered again.
    """
    count = len(best_scores)
    score = product
    if is_cosine and product > 0:
        score /= length * _norm(line, row, id_sample, is_left_out)
    place = line[START] + np.int64(row)
    if score <= 0 or (
        found == count
        and (score < best_scores[count - 1] or (score == best_scores[count - 1] and place >= best_rows[count - 1]))
    ):
        return found
    if len(excluded_rows) and _holds(excluded_rows, place):
        return found
    for known in range(found):
        if best_rows[known] == place:
            return found
    slot = min(found, count - 1)
    while slot > 0 and (
        best_scores[slot - 1] < score or (best_scores[slot - 1] == score and best_rows[slot - 1] > place)
    ):
        best_scores[slot], best_rows[slot] = best_scores[slot - 1], best_rows[slot - 1]
        slot -= 1
    best_scores[slot], best_rows[slot] = score, place
    return min(found + 1, count)


@njit(nogil=True, cache=True)
@no_type_check
def product_with(line, row, id_sample, query):
    """The inner product of a row and the query, summed in the order in which the row stores its neurons."""
    offsets = carray(at(line[OFFSETS]), line[ROWS] + 1, np.int64)
    stored_ids = carray(at(line[NEURON_IDS]), ENDLESS, id_sample.dtype)
    bits = carray(at(line[VALUES]), ENDLESS, np.uint16)
    product = 0.0
    for entry in range(offsets[row], offsets[row + 1]):
        product += unpacked(bits[entry]) * query[stored_ids[entry]]
    return product


@njit(nogil=True, cache=True)
@no_type_check
def _norm(line, row, id_sample, is_left_out):
    """The norm of a row over the neurons that count, summed in the order in which it stores them."""
    offsets = carray(at(line[OFFSETS]), line[ROWS] + 1, np.int64)
    stored_ids = carray(at(line[NEURON_IDS]), ENDLESS, id_sample.dtype)
    bits = carray(at(line[VALUES]), ENDLESS, np.uint16)
    square = 0.0
    for entry in range(offsets[row], offsets[row + 1]):
        if len(is_left_out) == 0 or not is_left_out[stored_ids[entry]]:
            value = unpacked(bits[entry])
            square += value * value
    return np.sqrt(square)


@njit(nogil=True, cache=True)
@no_type_check
def fetch_code(line, row, id_bytes):
    """Ask for the stored code of a row."""
    offsets = carray(at(line[OFFSETS]), line[ROWS] + 1, np.int64)
    first, last = offsets[row], offsets[row + 1]
    _fetch_lines(line[NEURON_IDS] + id_bytes * first, line[NEURON_IDS] + id_bytes * last)
    _fetch_lines(line[VALUES] + 2 * first, line[VALUES] + 2 * last)


@njit(nogil=True, cache=True)
@no_type_check
def _fetch_lines(first, last):
    """Ask for all cache lines from one address to before another; most codes lie in one or two."""
    fetch_ahead(first)
    fetch_ahead(last - 1)
    for address in range((first & ~63) + 64, (last - 1) & ~63, 64):
        fetch_ahead(address)


@njit(nogil=True, cache=True)
@no_type_check
def _holds(rising, value):
    """Whether a rising array has a value."""
    place = np.searchsorted(rising, value)
    return place < len(rising) and rising[place] == value
