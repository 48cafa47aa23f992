"""Which values stay on: loops of the selection, compiled for the CPU by numba; knows nothing of gradients.

Every kernel works on a range of rows or neurons and writes to that range alone; so that
results depend neither on the number of threads nor on timing. Arrays are C-contiguous; B rows, F neurons, width d.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["choose_above", "choose_largest", "collect_above", "weigh_candidates"]

_STRIDE = 32


@njit(nogil=True, cache=True)
@no_type_check
def collect_above(pre, first_neuron, rows, floors, start, end, counts, neuron_ids, values):
    """Append pre-activations above the row's floor to the row's slots; counts go on beyond the slots' end.

    Args:
        pre: [B, block] float32, of the neurons from `first_neuron` on; or int16, the bits of bfloat16.
        first_neuron: see above.
        rows: [n] the rows to look at.
        floors: [B] of the same type; only greater values are collected.
        start: first of the n.
        end: the one after the last.
        counts: [B] int64, added to.
        neuron_ids: [B, slots] int32, written.
        values: [B, slots] float32, written; of bits it makes no sense, see `weigh_candidates`.
    """
    width = pre.shape[1]
    slots = values.shape[1]
    whole = width - width % _STRIDE
    for index in range(start, end):
        row = rows[index]
        count = counts[row]
        floor = floors[row]
        line = pre[row]
        for base in range(0, whole, _STRIDE):
            hits = 0
            for offset in range(_STRIDE):
                hits += line[base + offset] > floor
            if hits:
                for neuron in range(base, base + _STRIDE):
                    if line[neuron] > floor:
                        if count < slots:
                            neuron_ids[row, count] = first_neuron + neuron
                            values[row, count] = line[neuron]
                        count += 1
        for neuron in range(whole, width):
            if line[neuron] > floor:
                if count < slots:
                    neuron_ids[row, count] = first_neuron + neuron
                    values[row, count] = line[neuron]
                count += 1
        counts[row] = count


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
@no_type_check
def weigh_candidates(inputs, encoder_rows, encoder_bias, start, end, counts, neuron_ids, values):
    """Compute the pre-activations of each row's slots; only positive ones keep their slot.

    Args:
        inputs: [B, d].
        encoder_rows: [F, d].
        encoder_bias: [F].
        start: first row.
        end: row after the last.
        counts: [B] slots in use, updated.
        neuron_ids: [B, slots], updated.
        values: [B, slots], written.
    """
    width = inputs.shape[1]
    for row in range(start, end):
        line = inputs[row]
        kept = 0
        for slot in range(counts[row]):
            neuron = neuron_ids[row, slot]
            weights = encoder_rows[neuron]
            total = np.float32(0)
            for column in range(width):
                total += line[column] * weights[column]
            total += encoder_bias[neuron]
            if total > 0:
                neuron_ids[row, kept] = neuron
                values[row, kept] = total
                kept += 1
        counts[row] = kept


@njit(nogil=True, cache=True)
@no_type_check
def choose_above(counts, neuron_ids, values, threshold, tie_count, row_starts, active_ids, active_values):
    """Keep what is above the threshold, and the first so many that equal it, in the order of rows and neurons.

    Args:
        counts: [B] slots in use.
        neuron_ids: [B, slots].
        values: [B, slots].
        threshold: see above.
        tie_count: how many equal values are kept.
        row_starts: [B + 1] int64, written.
        active_ids: [at least kept] int32, written.
        active_values: the same in float32.
    """
    kept = 0
    for row in range(len(counts)):
        row_starts[row] = kept
        for slot in range(counts[row]):
            value = values[row, slot]
            is_tie = value == threshold
            if value > threshold or (is_tie and tie_count > 0):
                tie_count -= is_tie
                active_ids[kept] = neuron_ids[row, slot]
                active_values[kept] = value
                kept += 1
    row_starts[len(counts)] = kept


@njit(nogil=True, cache=True)
@no_type_check
def _largest(values, count, scratch):
    """The `count`-th largest of the values, which are left as they are."""
    low, high = 0, len(values) - 1
    for index in range(len(values)):
        scratch[index] = values[index]
    target = count - 1
    while low < high:
        middle = (low + high) // 2
        first, between, last = scratch[low], scratch[middle], scratch[high]
        pivot = max(min(first, between), min(max(first, between), last))
        left, right = low, high
        while left <= right:
            while scratch[left] > pivot:
                left += 1
            while scratch[right] < pivot:
                right -= 1
            if left <= right:
                scratch[left], scratch[right] = scratch[right], scratch[left]
                left += 1
                right -= 1
        if target <= right:
            high = right
        elif target >= left:
            low = left
        else:
            break
    return scratch[target]


@njit(nogil=True, cache=True)
@no_type_check
def choose_largest(counts, neuron_ids, values, k, start, end, active_ids, active_values, chosen_counts):
    """Keep the k largest of each row's slots, or all where there are fewer; of equal ones those with the lower id.

    Args:
        counts: [B] slots in use.
        neuron_ids: [B, slots], rising in each row.
        values: [B, slots].
        k: at most so many of each row.
        start: first row.
        end: row after the last.
        active_ids: [B, k] int32, written.
        active_values: [B, k] float32, written.
        chosen_counts: [B] int64, written.
    """
    scratch = np.empty(values.shape[1], dtype=np.float32)
    for row in range(start, end):
        count = counts[row]
        if count <= k:
            for slot in range(count):
                active_ids[row, slot] = neuron_ids[row, slot]
                active_values[row, slot] = values[row, slot]
            chosen_counts[row] = count
            continue
        threshold = _largest(values[row, :count], k, scratch)
        above = 0
        for slot in range(count):
            above += values[row, slot] > threshold
        ties = k - above
        kept = 0
        for slot in range(count):
            value = values[row, slot]
            is_tie = value == threshold
            if value > threshold or (is_tie and ties > 0):
                ties -= is_tie
                active_ids[row, kept] = neuron_ids[row, slot]
                active_values[row, kept] = value
                kept += 1
        chosen_counts[row] = kept
