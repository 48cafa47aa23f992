"""The sums of `training.sparse.torch_sums` as Triton kernels: no row is copied, and each bag is summed in one place.

torch brings Triton with its CUDA builds alone, so that this module is imported only where there is a CUDA device. Under
`TRITON_INTERPRET=1` the kernels run on the CPU. Knows nothing of encoders.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["TritonSums"]

_SLOTS = 16
_COLUMNS = 128
# Fusion is asked for by name, since the default differs between versions of Triton.
_OPTIONS = {"slot_block": _SLOTS, "column_block": _COLUMNS, "enable_fp_fusion": True}


class TritonSums:
    """One program per bag and block of columns, or per block of slots; sums run in the order of slots."""

    def weighted(
        self,
        table: Float[Tensor, "rows d"],
        indices: Int[Tensor, " slots"],
        weights: Float[Tensor, " slots"],
        starts: Int[Tensor, " bags"],
        ends: Int[Tensor, " bags"],
    ) -> Float[Tensor, "bags d"]:
        """See `Sums.weighted`."""
        width = table.shape[1]
        sums = torch.empty(len(starts), width, device=table.device)
        grid = (len(starts), triton.cdiv(width, _COLUMNS))
        # Triton launches on the current device.
        with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]
            _sum_bag[grid](table, indices, weights, starts, ends, sums, width, **_OPTIONS)
        return sums

    def dots(
        self,
        left: Float[Tensor, "left d"],
        left_indices: Int[Tensor, " slots"],
        right: Float[Tensor, "right d"],
        right_indices: Int[Tensor, " slots"],
        *,
        is_wanted: Bool[Tensor, " slots"],
        slots_at_once: int,
    ) -> Float[Tensor, " slots"]:
        """See `Sums.dots`."""
        count, width = len(left_indices), left.shape[1]
        products = torch.empty(count, device=left.device)
        grid = (triton.cdiv(count, _SLOTS),)
        with torch.cuda.device_of(left):  # type: ignore[no-untyped-call]
            _multiply_rows[grid](
                left, left_indices, right, right_indices, is_wanted, products, count, width, **_OPTIONS
            )
        return products


@triton.jit
@no_type_check
def _sum_bag(table, indices, weights, starts, ends, sums, width, slot_block: tl.constexpr, column_block: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * column_block + tl.arange(0, column_block)
    is_column = columns < width
    start = tl.load(starts + bag)
    end = tl.load(ends + bag)
    total = tl.zeros((column_block,), tl.float32)
    for first in range(start, end, slot_block):
        slots = first + tl.arange(0, slot_block)
        is_slot = slots < end
        rows = tl.load(indices + slots, mask=is_slot, other=0)
        factors = tl.load(weights + slots, mask=is_slot, other=0.0)
        places = table + rows[:, None] * width + columns[None, :]
        values = tl.load(places, mask=is_slot[:, None] & is_column[None, :], other=0.0)
        total += tl.sum(factors[:, None] * values, axis=0)
    tl.store(sums + bag * width + columns, total, mask=is_column)


@triton.jit
@no_type_check
def _multiply_rows(
    left,
    left_indices,
    right,
    right_indices,
    is_wanted,
    products,
    count,
    width,
    slot_block: tl.constexpr,
    column_block: tl.constexpr,
):
    slots = tl.program_id(0) * slot_block + tl.arange(0, slot_block)
    is_slot = slots < count
    is_computed = tl.load(is_wanted + slots, mask=is_slot, other=0) != 0
    left_rows = tl.load(left_indices + slots, mask=is_slot, other=0)
    right_rows = tl.load(right_indices + slots, mask=is_slot, other=0)
    total = tl.zeros((slot_block, column_block), tl.float32)
    for first in range(0, width, column_block):
        columns = first + tl.arange(0, column_block)
        is_read = is_computed[:, None] & (columns < width)[None, :]
        one = tl.load(left + left_rows[:, None] * width + columns[None, :], mask=is_read, other=0.0)
        other = tl.load(right + right_rows[:, None] * width + columns[None, :], mask=is_read, other=0.0)
        total += one * other
    tl.store(products + slots, tl.sum(total, axis=1), mask=is_slot)
