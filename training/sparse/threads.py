"""Runs one kernel over ranges in several threads at once; knows nothing of what it computes.

Kernels release the interpreter lock. Which thread computes a range never shows in the result, so that results do not
depend on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["Threads"]

# Below this a hand-over costs more than it saves.
_LEAST_SIZE = 128


class Threads:
    """So many threads, the caller's own among them; the others start with the first work and end with the process."""

    def __init__(self, count: int) -> None:
        """Use `count` threads, at least 1."""
        self._count = count
        self._others = ThreadPoolExecutor(max(count - 1, 1), thread_name_prefix="phosphene-sparse")

    def over(self, size: int, kernel: Callable[[int, int], object]) -> None:
        """Call `kernel(start, end)` for ranges that together are `range(size)`; returns when all are done."""
        if self._count == 1 or size < max(_LEAST_SIZE, self._count):
            kernel(0, size)
            return
        bounds = [size * part // self._count for part in range(self._count + 1)]
        waits = [self._others.submit(kernel, start, end) for start, end in zip(bounds[1:-1], bounds[2:], strict=True)]
        kernel(bounds[0], bounds[1])
        for wait in waits:
            wait.result()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have torch compute on the thread that calls it: its idle threads spin, and take time from these."""
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(count)
