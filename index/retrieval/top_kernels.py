"""The strongest images of every neuron: loops compiled for the CPU by numba; see `index.tops`.

Activations come as the bits of float16, which for positive numbers are in the order of the numbers. Of equal ones the
lower row is stronger.
"""

from __future__ import annotations

from typing import no_type_check

from numba import njit

__all__ = ["merge_sorted", "strongest"]


@njit(nogil=True, cache=True)
@no_type_check
def _is_weaker(bits, row, other_bits, other_row):
    return bits < other_bits or (bits == other_bits and row > other_row)


@njit(nogil=True, cache=True)
@no_type_check
def _sink(bits, rows, size):
    """Bring the entry at the root to its place in a heap with the weakest at the root."""
    place = 0
    own_bits, own_row = bits[0], rows[0]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _is_weaker(bits[child + 1], rows[child + 1], bits[child], rows[child]):
            child += 1
        if not _is_weaker(bits[child], rows[child], own_bits, own_row):
            break
        bits[place], rows[place] = bits[child], rows[child]
        place = child
    bits[place], rows[place] = own_bits, own_row


@njit(nogil=True, cache=True)
@no_type_check
def strongest(offsets, neuron_ids, bits, kept_bits, kept_rows, counts):
    """Keep every neuron's strongest entries, strongest first.

    Args:
        offsets: [rows + 1] where each row begins in the next two.
        neuron_ids: [entries].
        bits: [entries] uint16.
        kept_bits: [neurons, limit] uint16, written.
        kept_rows: [neurons, limit] int32, written.
        counts: [neurons] int64, zero at first; written: how many are kept.
    """
    limit = kept_bits.shape[1]
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row], offsets[row + 1]):
            neuron = neuron_ids[entry]
            value = bits[entry]
            heap_bits, heap_rows = kept_bits[neuron], kept_rows[neuron]
            count = counts[neuron]
            if count < limit:
                place = count
                while place:
                    parent = (place - 1) // 2
                    if not _is_weaker(value, row, heap_bits[parent], heap_rows[parent]):
                        break
                    heap_bits[place], heap_rows[place] = heap_bits[parent], heap_rows[parent]
                    place = parent
                heap_bits[place], heap_rows[place] = value, row
                counts[neuron] = count + 1
            elif _is_weaker(heap_bits[0], heap_rows[0], value, row):
                heap_bits[0], heap_rows[0] = value, row
                _sink(heap_bits, heap_rows, limit)
    for neuron in range(len(counts)):
        heap_bits, heap_rows = kept_bits[neuron], kept_rows[neuron]
        # The weakest goes to the end, one after the other.
        for last in range(counts[neuron] - 1, 0, -1):
            heap_bits[0], heap_bits[last] = heap_bits[last], heap_bits[0]
            heap_rows[0], heap_rows[last] = heap_rows[last], heap_rows[0]
            _sink(heap_bits, heap_rows, last)


@njit(nogil=True, cache=True)
@no_type_check
def merge_sorted(starts, bits, rows, other_starts, other_bits, other_rows, limit, new_starts, new_bits, new_rows):
    """Merge every neuron's entries of two parts, each sorted; an entry of both counts once.

    Args:
        starts: [neurons + 1] where each neuron begins in the next two.
        bits: [entries] uint16.
        rows: [entries] int64.
        other_starts: of the other part.
        other_bits: the same.
        other_rows: the same.
        limit: entries kept per neuron.
        new_starts: [neurons + 1] int64, written.
        new_bits: [entries of both] uint16, written.
        new_rows: [entries of both] int64, written.
    """
    end = 0
    for neuron in range(len(starts) - 1):
        new_starts[neuron] = end
        left, left_end = starts[neuron], starts[neuron + 1]
        right, right_end = other_starts[neuron], other_starts[neuron + 1]
        stop = end + limit
        while end < stop and (left < left_end or right < right_end):
            if right == right_end:
                takes_left = True
            elif left == left_end:
                takes_left = False
            elif bits[left] == other_bits[right] and rows[left] == other_rows[right]:
                left += 1
                continue
            else:
                takes_left = _is_weaker(other_bits[right], other_rows[right], bits[left], rows[left])
            if takes_left:
                new_bits[end], new_rows[end] = bits[left], rows[left]
                left += 1
            else:
                new_bits[end], new_rows[end] = other_bits[right], other_rows[right]
                right += 1
            end += 1
    new_starts[len(starts) - 1] = end
