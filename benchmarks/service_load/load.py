"""Load: a closed loop of callers, or requests at a fixed rate whether or not answers come; and what became of them.

Knows neither gRPC nor HTTP: asks through a function. The same code loads every server. Imports the standard library
alone, because it runs in the peers' environments too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = ["Ask", "Ended", "Tally", "closed_loop", "open_loop", "quantile"]

Ended = Literal["answered", "wrong", "refused", "expired", "failed"]
Ask = Callable[[float, int], Awaitable[Ended]]
"""Sends a request, given the seconds that it may take and its serial number, and says how it ended; never raises."""


@dataclass(kw_only=True)
class Tally:
    """What became of the requests of one window."""

    wall_s: float = 0.0
    """Length of the window."""
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    """For every way to end, how long each request took that ended so in the window."""
    lateness_s: list[float] = field(default_factory=list)
    """By how much the generator missed each time at which it should have sent (open loop)."""

    def add(self, ended: Ended, latency_s: float) -> None:
        """Count a request."""
        self.latencies_s.setdefault(ended, []).append(latency_s)

    def summary(self) -> dict[str, Any]:
        """Counts, and quantiles in milliseconds, as JSON."""
        answered = self.latencies_s.get("answered", [])
        counts = {kind: len(self.latencies_s.get(kind, [])) for kind in get_args(Ended)}
        return {
            **counts,
            "wall_s": self.wall_s,
            "answered_per_s": len(answered) / self.wall_s,
            "p50_ms": 1000 * quantile(answered, 0.5) if answered else 1000 * self.wall_s,
            "p99_ms": 1000 * quantile(answered, 0.99),
            "refusal_p50_ms": 1000 * quantile(self.latencies_s.get("refused", []), 0.5),
            "lateness_p99_ms": 1000 * quantile(self.lateness_s, 0.99),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, between two of them in proportion; 0 where there are none."""
    if not values:
        return 0.0
    ordered, position = sorted(values), share * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


async def closed_loop(
    ask: Ask,
    *,
    callers: int,
    deadline_s: float,
    warm_s: float,
    measure_s: float,
    on_edge: Callable[[], None] = lambda: None,
) -> Tally:
    """Keep a number of callers busy, each with one request at a time, and count what ends inside the window.

    Args:
        ask: sends a request.
        callers: how many.
        deadline_s: how long each request may take.
        warm_s: seconds before the window.
        measure_s: seconds of the window.
        on_edge: called when the window begins and when it ends.
    """
    tally, serial = Tally(wall_s=measure_s), iter(range(2**62))
    begin_s = time.monotonic() + warm_s
    end_s = begin_s + measure_s

    async def call() -> None:
        while (asked_s := time.monotonic()) < end_s:
            ended = await ask(deadline_s, next(serial))
            ended_s = time.monotonic()
            if begin_s <= ended_s < end_s:
                tally.add(ended, ended_s - asked_s)

    await asyncio.gather(*(call() for _ in range(callers)), _edges(begin_s, end_s, on_edge))
    return tally


async def open_loop(
    ask: Ask,
    *,
    rate_per_s: float,
    deadline_s: float,
    warm_s: float,
    measure_s: float,
    on_edge: Callable[[], None] = lambda: None,
) -> Tally:
    """Send at even distances, and count the requests that were due inside the window.

    A request's time and its deadline run from when it was due, so that a generator that lags flatters nobody.

    Args:
        ask: sends a request.
        rate_per_s: requests a second.
        deadline_s: how long each request may take.
        warm_s: seconds before the window.
        measure_s: seconds of the window.
        on_edge: called when the window begins and when it ends.
    """
    tally, tasks = Tally(wall_s=measure_s), set[asyncio.Task[None]]()
    start_s = time.monotonic()
    begin_s, end_s = start_s + warm_s, start_s + warm_s + measure_s
    edges = asyncio.create_task(_edges(begin_s, end_s, on_edge))

    async def call(serial: int, due_s: float) -> None:
        sent_s = time.monotonic()
        left_s = due_s + deadline_s - sent_s
        ended = await ask(left_s, serial) if left_s > 0 else "expired"
        if begin_s <= due_s < end_s:
            tally.lateness_s.append(sent_s - due_s)
            tally.add(ended, time.monotonic() - due_s)

    for serial in range(int(rate_per_s * (warm_s + measure_s))):
        due_s = start_s + serial / rate_per_s
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        tasks.add(asyncio.create_task(call(serial, due_s)))
    await asyncio.gather(edges, *tasks)
    return tally


async def _edges(begin_s: float, end_s: float, on_edge: Callable[[], None]) -> None:
    for edge_s in (begin_s, end_s):
        await asyncio.sleep(max(0.0, edge_s - time.monotonic()))
        on_edge()
