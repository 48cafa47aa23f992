"""What an engine needs of a torch device: rows there and back without waiting, and time taken.

On the CPU every step is done when it returns. Knows nothing of encoders or bundles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

__all__ = [
    "DeviceTimer",
    "Mark",
    "bucket_size",
    "take_rows",
    "to_host",
    "upload",
    "used_memory_bytes",
]


def upload(
    pixels: UInt8[np.ndarray, "images 3 height width"], order: Sequence[int], device: torch.device
) -> UInt8[Tensor, "rows 3 height width"]:
    """Put images on the device in the order given; on CUDA as many rows as `bucket_size` says, the last ones zero.

    Args:
        pixels: the images.
        order: a permutation of their positions.
        device: where to.
    """
    if device.type == "cpu":
        return torch.from_numpy(pixels if _is_run(order) else pixels[order])
    held = torch.zeros((bucket_size(len(order), device), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
    np.take(pixels, order, axis=0, out=held.numpy()[: len(order)])
    return held.to(device, non_blocking=True)


def bucket_size(row_count: int, device: torch.device) -> int:
    """Round a number of rows up to one of few sizes, for which CUDA has chosen its kernels before; not on the CPU."""
    return row_count if device.type == "cpu" else 1 << (row_count - 1).bit_length()


def take_rows(tensor: Shaped[Tensor, rows * rest], rows: Sequence[int]) -> Shaped[Tensor, taken * rest]:
    """Take rows; a view where they follow each other."""
    if _is_run(rows):
        return tensor[rows[0] : rows[0] + len(rows)]
    index = torch.tensor(rows, dtype=torch.int64, pin_memory=tensor.is_cuda)
    return tensor.index_select(0, index.to(tensor.device, non_blocking=True))


def to_host(tensor: Tensor) -> Tensor:
    """Start a copy to the host; on CUDA it is there once the stream has come so far."""
    return tensor.to("cpu", non_blocking=True)


def used_memory_bytes(device: torch.device) -> int:
    """Memory of a device that is in use, whoever uses it; 0 on the CPU, and where CUDA does not say.

    Asks the driver and waits for no work, so that any thread may ask at any time.
    """
    if device.type == "cpu":
        return 0
    # Written for a machine with CUDA; no test has run it.
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    except RuntimeError:
        # The device has failed: whoever runs on it is told so, and a figure is no place to tell it again.
        return 0
    return total_bytes - free_bytes


class DeviceTimer:
    """Marks in a device's stream of work, and the seconds between two of them."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep where the work runs, and the clock of a device that works at once."""
        self._device = device
        self._clock = clock

    def mark(self) -> Mark:
        """Mark what has been given to the device until now."""
        if self._device.type == "cpu":
            return Mark(moment_s=self._clock())
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return Mark(event=event)

    def wait(self, mark: Mark) -> None:
        """Wait until the device has come so far."""
        if mark.event is not None:
            mark.event.synchronize()

    def seconds(self, start: Mark, end: Mark) -> float:
        """Give the time between two marks; both have been waited for."""
        if start.event is not None and end.event is not None:
            return float(start.event.elapsed_time(end.event)) / 1000
        return end.moment_s - start.moment_s


@dataclass(frozen=True, kw_only=True, eq=False)
class Mark:
    """A place in a device's stream of work."""

    moment_s: float = 0.0
    """When it was reached, by the timer's clock; on a device that works at once."""
    event: torch.cuda.Event | None = None
    """What CUDA records there."""


def _is_run(rows: Sequence[int]) -> bool:
    return all(row == rows[0] + place for place, row in enumerate(rows))
