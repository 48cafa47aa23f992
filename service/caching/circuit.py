"""The circuit breaker: whether Redis may be asked at all, told from how it answered; knows no socket, clock or Redis.

Closed: ask. Open: it failed too often in a row, or has been too slow to be of use for a while, and nobody asks. Half
open: a probe is on its way, and still nobody else asks, so that no request ever pays for finding out. When to probe is
the owner's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum

__all__ = ["PACE_COUNT", "SLOW_COUNT", "Circuit", "CircuitState"]

PACE_COUNT = 20
"""Answers whose pace is remembered."""
SLOW_COUNT = 15
"""As many slow ones among them open the circuit: a Redis that is slow now and then is of use, one that always is, is
not."""


class CircuitState(StrEnum):
    """Whether requests may ask."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Circuit:
    """Counts failures in a row; begins open, since nothing is known before the first probe."""

    def __init__(self, *, failure_limit: int, on_change: Callable[[CircuitState], None]) -> None:
        """Begin open.

        Args:
            failure_limit: failures in a row that open it.
            on_change: told the new state at once, and never the same one twice in a row.
        """
        self._failure_limit = failure_limit
        self._on_change = on_change
        self._failure_count = 0
        self._are_slow: deque[bool] = deque(maxlen=PACE_COUNT)
        self._state = CircuitState.OPEN
        self.reason = ""
        """Why it opened, where answers opened it."""

    @property
    def state(self) -> CircuitState:
        """The state now."""
        return self._state

    @property
    def is_closed(self) -> bool:
        """Requests may ask."""
        return self._state is CircuitState.CLOSED

    def succeeded(self) -> None:
        """A request was answered in time: failures in a row begin anew; opens and closes nothing."""
        self._failure_count = 0

    def failed(self) -> None:
        """A request was not answered in time, or could not be asked; ignored unless closed."""
        if self._state is not CircuitState.CLOSED:
            return
        self._failure_count += 1
        if self._failure_count >= self._failure_limit:
            self.reason = f"{self._failure_limit} failures in a row"
            self._enter(CircuitState.OPEN)

    def paced(self, *, is_slow: bool) -> None:
        """How fast an answer was, in time or not; ignored unless closed."""
        if self._state is not CircuitState.CLOSED:
            return
        self._are_slow.append(is_slow)
        if sum(self._are_slow) >= SLOW_COUNT:
            self.reason = f"{SLOW_COUNT} of {len(self._are_slow)} answers were slow"
            self._enter(CircuitState.OPEN)

    def probing(self) -> None:
        """A probe begins; whatever the state, requests stay away until it is over."""
        self._enter(CircuitState.HALF_OPEN)

    def probed(self, *, is_well: bool) -> None:
        """The probe is over."""
        self._enter(CircuitState.CLOSED if is_well else CircuitState.OPEN)

    def _enter(self, state: CircuitState) -> None:
        self._failure_count = 0
        self._are_slow.clear()
        if state is not self._state:
            self._state = state
            self._on_change(state)
