"""Whether the device has stalled: for how long there was work without a success; knows no device and no queue.

Only time with work counts, so that an idle service never stalls, and it adds up until a success, so that a device that
fails every call is found as surely as one that hangs. One timer, armed when work comes; nothing polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["StallWatch"]


class StallWatch:
    """Used on the event loop only."""

    def __init__(
        self, *, limit_s: float, clock: Callable[[], float], on_changed: Callable[[bool], None] | None
    ) -> None:
        """Begin idle.

        Args:
            limit_s: seconds of work without a success after which the device counts as stalled.
            clock: monotonic seconds.
            on_changed: told when the device stalls and when it answers again.
        """
        self._limit_s = limit_s
        self._clock = clock
        self._on_changed = on_changed
        self._spent_s = 0.0
        self._busy_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_stalled = False

    def busy(self) -> None:
        """There is work; told at each piece of it."""
        if self._busy_since_s is None:
            self._busy_since_s = self._clock()
            self._arm()

    def idle(self) -> None:
        """Nothing waits or runs any more."""
        self._spent_s = self._elapsed_s()
        self._busy_since_s = None

    def succeeded(self) -> None:
        """The device answered."""
        self._spent_s = 0.0
        if self._busy_since_s is not None:
            self._busy_since_s = self._clock()
        self._change(False)
        if self._busy_since_s is not None:
            self._arm()

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed_s(self) -> float:
        running_s = 0.0 if self._busy_since_s is None else self._clock() - self._busy_since_s
        return self._spent_s + running_s

    def _arm(self) -> None:
        if self._timer is None and not self.is_stalled:
            left_s = max(self._limit_s - self._elapsed_s(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._elapsed_s() >= self._limit_s:
            self._change(True)
        elif self._busy_since_s is not None:
            self._arm()

    def _change(self, is_stalled: bool) -> None:
        if is_stalled is self.is_stalled:
            return
        self.is_stalled = is_stalled
        if self._on_changed is not None:
            self._on_changed(is_stalled)
