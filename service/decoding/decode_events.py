"""What an observer hears of the decode pool; knows neither the pool nor the metrics."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

__all__ = ["DecodeEvents"]


@runtime_checkable
class DecodeEvents(Protocol):
    """Called on the event loop; must be quick and must not raise."""

    def decode_done(self, *, duration_s: float, size_bytes: int, pixel_count: int) -> None:
        """An image of this size was decoded, in this time at its worker."""

    def decode_killed(self, cause: Literal["timeout", "crash"]) -> None:
        """A worker was lost to an image."""

    def decode_depth_changed(self, depth: int) -> None:
        """The number of images that wait for a worker changed."""

    def dropped(self, cause: Literal["cancelled", "expired", "closed"], stage: Literal["decode"]) -> None:
        """An image left the queue before a worker had begun it."""
