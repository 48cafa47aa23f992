"""The active neurons of a batch from its pre-activations, without sorting all of them.

Candidates are what lies above a floor that earlier batches suggest, and the selection among them is exact: where they
are too few, it is made again from a lower floor. So the floor decides how long a selection takes and never what comes
out. Only positive pre-activations are ever selected. Knows nothing of gradients.

With bfloat16, the candidates are found in half the digits and their values computed again in float32 before any is
chosen: a neuron is missed only where rounding hides it below a floor that lies under the last chosen value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from training.ranks import ALONE, Ranks
from training.sparse.selection_kernels import choose_above, choose_largest, collect_above, weigh_candidates
from training.sparse.threads import Threads

__all__ = ["ActiveRows", "Selector"]

_BLOCK_VALUES = 1 << 23
_SAMPLE_ROWS = 32
_ROW_QUANTILE = 0.02
_MOST_SPARE = 2.0
_SLOT_LIMIT = 16


class ActiveRows(NamedTuple):
    """The active neurons of a batch as ragged rows."""

    row_starts: Int64[np.ndarray, " starts"]
    """Where each row begins in the other two; one more than rows."""
    neuron_ids: Int32[np.ndarray, " active"]
    """The neuron of each value, rising in each row."""
    values: Float32[np.ndarray, " active"]
    """Activations > 0."""


class Selector:
    """Selects k neurons of each row, or the k x rows largest of a batch; remembers only where to begin to look."""

    def __init__(
        self,
        k: int,
        *,
        is_over_batch: bool,
        threads: Threads,
        in_bfloat16: bool = False,
        ranks: Ranks = ALONE,
        block_values: int = _BLOCK_VALUES,
    ) -> None:
        """Select k neurons per row.

        Args:
            k: see above.
            is_over_batch: whether on average over the batch, or of each row by itself.
            threads: run the kernels.
            in_bfloat16: whether candidates are found in bfloat16.
            ranks: who else has a part of each batch.
            block_values: most pre-activations that exist at a time.
        """
        self._k = k
        self._block_values = block_values
        self._dtype = torch.bfloat16 if in_bfloat16 else torch.float32
        # Kept from batch to batch: fresh pages cost a third as much as the product that fills them.
        self._memory = torch.empty(0, dtype=self._dtype)
        self._rounded_rows = torch.empty(0, dtype=self._dtype)
        self._slots = _Slots(0, 0)
        self._ranks = ranks
        self._is_over_batch = is_over_batch
        self._threads = threads
        self._slot_count = 4 * k
        self._reach = 0.0
        self._share = 0.85

    @property
    def start(self) -> Float64[Tensor, " numbers"]:
        """Where the next batch begins to look; in bfloat16 it decides what rounding hides, in float32 nothing."""
        return torch.tensor([self._reach, self._share], dtype=torch.float64)

    @start.setter
    def start(self, start: Float64[Tensor, " numbers"]) -> None:
        self._reach, self._share = start.tolist()

    def select(
        self,
        inputs: Float32[Tensor, "rows d"],
        encoder_rows: Float32[Tensor, "neurons d"],
        encoder_bias: Float32[Tensor, " neurons"],
    ) -> ActiveRows:
        """The active neurons of one batch.

        Args:
            inputs: what the encoder reads.
            encoder_rows: its weights by neuron.
            encoder_bias: its biases.
        """
        blocks = self._blocks(inputs, encoder_rows, encoder_bias)
        # Pre-activations grow with their row; over a batch, all rows compete on one scale.
        scale = torch.ones(len(inputs)) if self._is_over_batch else inputs.norm(dim=1)
        scales = scale.numpy()
        if not self._reach > 0:
            self._reach = self._first_reach(blocks, scales)
        with np.errstate(over="ignore", invalid="ignore"):  # rows that hold NaN or infinity begin from 0
            floors = (self._share * self._reach) * scales
        floors = np.maximum(np.nan_to_num(floors, nan=0.0, posinf=0.0), 0).astype(np.float32)
        rows = np.arange(len(inputs))
        slots = self._empty_slots(len(inputs), min(self._slot_count, blocks.neuron_count))
        while True:
            slots = self._collect(blocks, rows, floors, slots)
            rows = self._short_rows(slots, floors)
            if not len(rows):
                break
            self._share = max(self._share - 0.05, 0.1)
            floors[rows] = np.where(floors[rows] > 0.1 * self._reach * scales[rows], 0.5 * floors[rows], 0)
            slots.counts[rows] = 0
        if self._dtype == torch.bfloat16:
            self._weigh(slots, inputs, encoder_rows, encoder_bias)
        return self._choose_over_batch(slots) if self._is_over_batch else self._choose_by_row(slots, scales)

    def _blocks(self, inputs: Tensor, encoder_rows: Tensor, encoder_bias: Tensor) -> _Blocks:
        width = max(1, min(len(encoder_rows), self._block_values // max(1, len(inputs))))
        if self._memory.numel() < len(inputs) * width:
            self._memory = torch.empty(len(inputs) * width, dtype=self._dtype)
        if self._dtype == torch.bfloat16:
            if self._rounded_rows.shape != encoder_rows.shape:
                self._rounded_rows = torch.empty_like(encoder_rows, dtype=self._dtype)
            rounded, exact = self._rounded_rows, encoder_rows
            self._threads.over(len(exact), lambda start, end: rounded[start:end].copy_(exact[start:end]))
            inputs, encoder_rows, encoder_bias = inputs.to(self._dtype), rounded, encoder_bias.to(self._dtype)
        return _Blocks(inputs, encoder_rows, encoder_bias, memory=self._memory, width=width, threads=self._threads)

    def _weigh(self, slots: _Slots, inputs: Tensor, encoder_rows: Tensor, encoder_bias: Tensor) -> None:
        """Compute the candidates' values in float32; those that are not positive after all are dropped."""
        arrays = (inputs.numpy(), encoder_rows.numpy(), encoder_bias.numpy())
        self._threads.over(
            len(slots.counts),
            lambda start, end: weigh_candidates(*arrays, start, end, slots.counts, slots.neuron_ids, slots.values),
        )

    def _empty_slots(self, row_count: int, slot_count: int) -> _Slots:
        if self._slots.values.shape != (row_count, slot_count):
            self._slots = _Slots(row_count, slot_count)
        self._slots.counts[:] = 0
        return self._slots

    def _collect(self, blocks: _Blocks, rows: Int64[np.ndarray, " n"], floors: np.ndarray, slots: _Slots) -> _Slots:
        """Fill the slots of these rows; gives wider slots where they ran over."""
        while True:
            for first, pre in blocks:
                self._collect_block(pre, first, rows, floors, slots)
            most = int(slots.counts.max(initial=0))
            if most <= slots.values.shape[1]:
                return slots
            slot_count = min(most + most // 2, blocks.neuron_count)
            self._slot_count = min(slot_count, _SLOT_LIMIT * self._k)
            slots = _Slots(len(slots.counts), slot_count)
            rows = np.arange(len(slots.counts))

    def _collect_block(
        self, pre: np.ndarray, first: int, rows: Int64[np.ndarray, " n"], floors: np.ndarray, slots: _Slots
    ) -> None:
        floors = floors if pre.dtype == np.float32 else _upper_half(floors)
        self._threads.over(
            len(rows),
            lambda start, end: collect_above(
                pre, first, rows, floors, start, end, slots.counts, slots.neuron_ids, slots.values
            ),
        )

    def _short_rows(self, slots: _Slots, floors: np.ndarray) -> Int64[np.ndarray, " n"]:
        """Rows that must be looked at again from a lower floor."""
        if self._is_over_batch:
            missing = self._ranks.total(float(self._k * len(slots.counts) - int(slots.counts.sum())))
            is_short = missing > 0 and self._ranks.total(float(floors.any())) > 0
            return np.arange(len(slots.counts)) if is_short else np.arange(0)
        return np.flatnonzero((slots.counts < self._k) & (floors > 0))

    def _choose_over_batch(self, slots: _Slots) -> ActiveRows:
        own = slots.values[np.arange(slots.values.shape[1]) < slots.counts[:, None]]
        parts = self._ranks.gather(own)
        values = np.concatenate(parts)
        wanted = self._k * int(self._ranks.total(float(len(slots.counts))))
        threshold, tie_count, kept = np.float32(0), 0, len(own)
        if len(values) > wanted:
            threshold = np.partition(values, len(values) - wanted)[len(values) - wanted]
            # Of equal ones the first stay, in the order of ranks.
            ties = wanted - int((values > threshold).sum())
            ties -= sum(int((part == threshold).sum()) for part in parts[: self._ranks.rank])
            tie_count = min(max(ties, 0), int((own == threshold).sum()))
            kept = int((own > threshold).sum()) + tie_count
            self._reach = float(threshold)
            if len(values) > _MOST_SPARE * wanted:
                self._share = min(self._share + 0.02, 0.97)
        active = _empty(len(slots.counts), kept)
        choose_above(slots.counts, slots.neuron_ids, slots.values, threshold, tie_count, *active)
        return active

    def _choose_by_row(self, slots: _Slots, scales: Float32[np.ndarray, " rows"]) -> ActiveRows:
        row_count = len(slots.counts)
        ids = np.empty((row_count, self._k), np.int32)
        values = np.empty((row_count, self._k), np.float32)
        counts = np.empty(row_count, np.int64)
        self._threads.over(
            row_count,
            lambda start, end: choose_largest(
                slots.counts, slots.neuron_ids, slots.values, self._k, start, end, ids, values, counts
            ),
        )
        is_full = (counts == self._k) & (scales > 0) & np.isfinite(scales)
        if is_full.any():
            reach = float(np.quantile(values[is_full].min(axis=1) / scales[is_full], _ROW_QUANTILE))
            self._reach = reach if math.isfinite(reach) else 0.0
        is_used = np.arange(self._k) < counts[:, None]
        row_starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        return ActiveRows(row_starts, ids[is_used], values[is_used])

    def _first_reach(self, blocks: _Blocks, scales: np.ndarray) -> float:
        """From a few rows and one block: about where the selection ends."""
        _, pre = next(iter(blocks))
        rows = pre[:_SAMPLE_ROWS]
        if rows.dtype == np.int16:
            rows = (rows.astype(np.int32) << 16).view(np.float32)
        share = max(1, round(self._k * rows.shape[1] / blocks.neuron_count))
        if self._is_over_batch:
            count = min(share * len(rows), rows.size)
            return float(np.partition(rows, rows.size - count, axis=None)[rows.size - count])
        ends = np.partition(rows, rows.shape[1] - min(share, rows.shape[1]), axis=1)[:, -min(share, rows.shape[1])]
        reach = float(np.quantile(ends / np.maximum(scales[: len(rows)], 1e-30), _ROW_QUANTILE))
        return reach if math.isfinite(reach) else 0.0


class _Slots:
    """Candidates of every row, in the order of their neurons."""

    def __init__(self, row_count: int, slot_count: int) -> None:
        self.counts = np.zeros(row_count, np.int64)
        self.neuron_ids = np.empty((row_count, slot_count), np.int32)
        self.values = np.empty((row_count, slot_count), np.float32)


class _Blocks:
    """Pre-activations of a batch, a block of neurons at a time; a single block is computed once.

    NumPy has no bfloat16: such blocks come as the integers of the same bits, which for positive numbers are in the same
    order, and negative for negative ones.
    """

    def __init__(
        self,
        inputs: Tensor,
        encoder_rows: Tensor,
        encoder_bias: Tensor,
        *,
        memory: Tensor,
        width: int,
        threads: Threads,
    ) -> None:
        self._inputs, self._rows, self._bias, self._threads = inputs, encoder_rows, encoder_bias, threads
        self.neuron_count = len(encoder_rows)
        self._memory = memory
        self._width = width
        self._single: np.ndarray | None = None

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        if self._single is not None:
            yield 0, self._single
            return
        for first in range(0, self.neuron_count, self._width):
            product = self._product(first, min(first + self._width, self.neuron_count))
            block = (product.view(torch.int16) if product.dtype == torch.bfloat16 else product).numpy()
            if block.shape[1] == self.neuron_count:
                self._single = block
            yield first, block

    def _product(self, first: int, end: int) -> Tensor:
        """Every thread multiplies a part of the neurons by itself: torch's own would go on spinning afterwards."""
        row_count = len(self._inputs)
        block = self._memory[: row_count * (end - first)].view(row_count, end - first)

        def part(low: int, high: int) -> None:
            mine = slice(first + low, first + high)
            torch.addmm(self._bias[mine], self._inputs, self._rows[mine].T, out=block[:, low:high])

        self._threads.over(end - first, part)
        return block


def _upper_half(floors: Float32[np.ndarray, " rows"]) -> np.ndarray:
    """The bits of floors >= 0 as bfloat16, rounded down."""
    return (floors.view(np.int32) >> 16).astype(np.int16)


def _empty(row_count: int, active_count: int) -> ActiveRows:
    return ActiveRows(
        np.empty(row_count + 1, np.int64), np.empty(active_count, np.int32), np.empty(active_count, np.float32)
    )
