"""The two sums that a sparse autoencoder is made of, in plain torch, and the choice of what computes them on a device.

No atomic additions and no order that timing decides: the same numbers give the same bits. Triton compiles for each
machine and needs a C compiler there, which many containers do not have. Knows nothing of encoders.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["PlainSums", "Sums", "sums_for", "triton_sums", "why_plain"]

# More would not stay in the processor's cache between being copied and being multiplied: half as fast.
_CACHED_VALUES = 1 << 19


@runtime_checkable
class Sums(Protocol):
    """Weighted sums of rows of a table, and products of rows of two tables; tables are contiguous float32."""

    def weighted(
        self,
        table: Float[Tensor, "rows d"],
        indices: Int[Tensor, " slots"],
        weights: Float[Tensor, " slots"],
        starts: Int[Tensor, " bags"],
        ends: Int[Tensor, " bags"],
    ) -> Float[Tensor, "bags d"]:
        """The sum of weight x row over the slots of every bag.

        Args:
            table: the rows.
            indices: which row a slot means.
            weights: of each slot.
            starts: first slot of each bag, rising; slots from a bag's end to the next start weigh 0.
            ends: slot after the last that counts, of each bag.
        """

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
        """The product of a row of one table with a row of another, for every slot.

        Args:
            left: a table.
            left_indices: its row of each slot.
            right: the other table.
            right_indices: its row of each slot.
            is_wanted: slots to compute; the others are 0.
            slots_at_once: most slots whose rows may be copied.
        """


class PlainSums:
    """By `embedding_bag` and by gathering rows."""

    def weighted(
        self,
        table: Float[Tensor, "rows d"],
        indices: Int[Tensor, " slots"],
        weights: Float[Tensor, " slots"],
        starts: Int[Tensor, " bags"],
        ends: Int[Tensor, " bags"],
    ) -> Float[Tensor, "bags d"]:
        """See `Sums.weighted`."""
        return torch.nn.functional.embedding_bag(indices, table, starts, mode="sum", per_sample_weights=weights)

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
        if left.device.type == "cpu":
            slots_at_once = max(1, min(slots_at_once, _CACHED_VALUES // left.shape[1]))
        parts = (torch.split(indices, slots_at_once) for indices in (left_indices, right_indices))
        products = [
            (left.index_select(0, mine) * right.index_select(0, other)).sum(dim=1)
            for mine, other in zip(*parts, strict=True)
        ]
        return torch.where(is_wanted, torch.cat(products), 0)


def sums_for(device: torch.device) -> Sums:
    """Triton's kernels where the device is CUDA and they run there; else plain torch.

    Either gives the same bits every time; the two differ in their last bits.
    """
    found = triton_sums(device) if device.type == "cuda" else ""
    return PlainSums() if isinstance(found, str) else found


def why_plain(device: torch.device) -> str | None:
    """Why `sums_for` gives plain torch on a CUDA device, in words; None where it does not, and on the CPU."""
    found = triton_sums(device) if device.type == "cuda" else None
    return found if isinstance(found, str) else None


def triton_sums(device: torch.device) -> Sums | str:
    """Triton's kernels, compiled and launched once there; or, in words, why they do not run.

    Raises:
        torch.OutOfMemoryError: the device has no room even for numbers.
    """
    try:
        from training.sparse.triton_sums import TritonSums

        sums = TritonSums()
        _try_out(sums, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no package, no compiler, no folder for a cache: what is raised shares no base class
        reason = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {reason}"
    return sums


def _try_out(sums: Sums, device: torch.device) -> None:
    one, zero = torch.ones(1, 1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    found = sums.weighted(one, zero, one[0], zero, zero + 1)
    found += sums.dots(one, zero, one, zero, is_wanted=zero == 0, slots_at_once=1)
    float(found)  # Waits for the device.
