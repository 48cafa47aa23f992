"""How many items a batch may hold, learnt from a device that ran out of memory; knows no device and no queue."""

from __future__ import annotations

__all__ = ["BatchLimit"]

_GOOD_BATCHES_TO_GROW = 64


class BatchLimit:
    """Halved where a batch did not fit; grows back by one doubling after 64 good batches."""

    def __init__(self, configured: int) -> None:
        """Begin with the configured limit."""
        self.value = configured
        self._configured = configured
        self._good_count = 0

    @property
    def is_reduced(self) -> bool:
        """Whether it is below the configured limit."""
        return self.value < self._configured

    def out_of_memory(self, size: int) -> None:
        """A batch of this size did not fit; a lone item says nothing of batches."""
        self._good_count = 0
        if size > 1:
            self.value = min(self.value, size // 2)

    def succeeded(self) -> bool:
        """A batch was answered; True where the limit has grown."""
        if not self.is_reduced:
            return False
        self._good_count += 1
        if self._good_count < _GOOD_BATCHES_TO_GROW:
            return False
        self._good_count = 0
        self.value = min(2 * self.value, self._configured)
        return True
