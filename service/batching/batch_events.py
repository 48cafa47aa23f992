"""What an observer hears of the batcher; knows neither the batcher nor the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

__all__ = ["BatcherEvents", "Drop", "SilentEvents"]


class Drop:
    """Why work left the queue unanswered."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    CLOSED = "closed"


@runtime_checkable
class BatcherEvents(Protocol):
    """Called on the engine's threads or the event loop; must be quick and must not raise."""

    def batch_done(self, *, operation: str, size: int, queue_s: Sequence[float], engine_s: float, cost: float) -> None:
        """A batch was answered: its size, how long each item had waited, how long the device worked, what it cost."""

    def dropped(self, cause: str) -> None:
        """An item was dropped before it cost device time."""

    def depth_changed(self, depth: int, lane: str) -> None:
        """The number of items that wait in a lane changed."""

    def batch_limit_changed(self, batch_limit: int) -> None:
        """Most items of a batch, at the start and whenever it grows back."""

    def out_of_memory(self, batch_limit: int) -> None:
        """A batch did not fit into the device; the limit from now on."""

    def device_succeeded(self) -> None:
        """The device answered."""


class SilentEvents:
    """An observer that ignores everything."""

    def batch_done(self, *, operation: str, size: int, queue_s: Sequence[float], engine_s: float, cost: float) -> None:
        """Ignored."""

    def dropped(self, cause: str) -> None:
        """Ignored."""

    def depth_changed(self, depth: int, lane: str) -> None:
        """Ignored."""

    def batch_limit_changed(self, batch_limit: int) -> None:
        """Ignored."""

    def out_of_memory(self, batch_limit: int) -> None:
        """Ignored."""

    def device_succeeded(self) -> None:
        """Ignored."""
