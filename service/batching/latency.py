"""How long the device takes, learnt from its batches: seconds = a * cost + b, per operation; knows no queue.

A least-squares line with exponential forgetting, in closed form. One wild batch moves it little; a device that becomes
slower or faster for good is followed within a dozen batches.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LatencyModel", "retry_after_s"]

_FORGETTING = 0.98
_NEWS_FORGETTING = 0.5
_WILD_FACTOR = 3.0
_SPREAD_FLOOR = 1e-3


class LatencyModel:
    """One line for each operation, and one over all of them; not safe between threads: its owner locks."""

    def __init__(self) -> None:
        """Begin without knowledge: every estimate is 0 until the first batch."""
        self._all = _Line()
        self._lines: dict[str, _Line] = {}

    def observe(self, operation: str, *, cost: float, duration_s: float) -> None:
        """Learn from one batch.

        Args:
            operation: what the batch did.
            cost: of all its items.
            duration_s: how long the device worked on it.
        """
        self._all.observe(cost, duration_s)
        line = self._lines.get(operation)
        if line is None:
            line = self._lines[operation] = _Line()
        line.observe(cost, duration_s)

    def seconds(self, cost: float, batch_count: int = 1, *, operation: str | None = None) -> float:
        """Estimated seconds of device time.

        Args:
            cost: of all items together.
            batch_count: batches that they are spread over.
            operation: what is done; None, or one never seen: as batches of all kinds take.
        """
        line = self._all if operation is None else self._lines.get(operation, self._all)
        return line.slope_s * cost + line.fixed_s * batch_count


def retry_after_s(backlog_s: float) -> float:
    """Seconds in which half of a backlog will have been worked off, within 0.05 and 30."""
    return min(max(backlog_s / 2, 0.05), 30.0)


@dataclass(eq=False)
class _Line:
    """A weighted least-squares line through (cost, seconds), neither of whose terms is negative."""

    slope_s: float = 0.0
    fixed_s: float = 0.0
    _weight: float = 0.0
    _cost: float = 0.0
    _seconds: float = 0.0
    _cost_squared: float = 0.0
    _cost_seconds: float = 0.0
    _fixed_share: float = 0.0
    _last_side: int = 0

    def observe(self, cost: float, seconds: float) -> None:
        forgetting = _FORGETTING
        expected_s = self.slope_s * cost + self.fixed_s
        if expected_s > 0:
            side = (seconds > expected_s * _WILD_FACTOR) - (seconds < expected_s / _WILD_FACTOR)
            seconds = min(seconds, expected_s * _WILD_FACTOR)
            # One wild batch is an accident; two in a row on the same side are news.
            if side and side == self._last_side:
                forgetting = _NEWS_FORGETTING
            self._last_side = side
        self._weight = forgetting * self._weight + 1
        self._cost = forgetting * self._cost + cost
        self._seconds = forgetting * self._seconds + seconds
        self._cost_squared = forgetting * self._cost_squared + cost * cost
        self._cost_seconds = forgetting * self._cost_seconds + cost * seconds
        self._fit()

    def _fit(self) -> None:
        mean_cost, mean_s = self._cost / self._weight, self._seconds / self._weight
        variance = self._cost_squared / self._weight - mean_cost * mean_cost
        if variance > _SPREAD_FLOOR * mean_cost * mean_cost:
            slope_s = max((self._cost_seconds / self._weight - mean_cost * mean_s) / variance, 0.0)
            self._fixed_share = min(max(1 - slope_s * mean_cost / mean_s, 0.0), 1.0) if mean_s > 0 else 0.0
        # Batches of one size do not tell the two terms apart: the last known share of the fixed one holds.
        self.fixed_s = self._fixed_share * mean_s
        self.slope_s = (mean_s - self.fixed_s) / mean_cost if mean_cost > 0 else 0.0
