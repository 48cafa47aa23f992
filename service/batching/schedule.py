"""What the device does next, and how long it will take; knows no threads (its owner locks) and gives no answers.

Greedy: a free device gets the work whose turn it is and others of the same operation, up to the batch limit. Behind a
running batch goes a full one or nothing. What failed goes first and has the device to itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.batching.batch_limit import BatchLimit
from service.batching.fair_queue import FairQueue
from service.batching.latency import LatencyModel
from service.batching.work import Flight, Operation, Work
from service.claims import Claim, Lane

__all__ = ["Schedule"]

_LAUNCH_DEPTH = 2
_ROUNDING = 1e-9
_FORGETTING = 0.98


@dataclass(eq=False)
class _Tally:
    """What waits for one operation."""

    count: int = 0
    cost: float = 0.0


class Schedule:
    """Waiting work, batches on the device, and what is learnt from them."""

    def __init__(self, *, batch_limit: int, bulk_share: float, clock: Callable[[], float]) -> None:
        """Begin with nothing.

        Args:
            batch_limit: most items in one batch.
            bulk_share: share of the device that the bulk lane gets while both lanes wait.
            clock: monotonic seconds.
        """
        self.queue: FairQueue[Work] = FairQueue(bulk_share=bulk_share)
        self.limit = BatchLimit(batch_limit)
        self.latency = LatencyModel()
        self.flights: deque[Flight] = deque()
        self._clock = clock
        self._tallies: dict[Operation[Any, Any], _Tally] = {}
        self._retries: deque[list[Work]] = deque()
        self._costs, self._squared_costs = 0.0, 0.0
        self._device_free_s = -math.inf

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self.queue or self.flights or self._retries)

    @property
    def is_running(self) -> bool:
        """Whether a batch is on the device or is to be tried again."""
        return bool(self.flights or self._retries)

    def put(self, work: Work) -> None:
        """Let work wait for its turn."""
        self.queue.put(work, claim=work.claim, cost=work.cost)
        tally = self._tallies.setdefault(work.operation, _Tally())
        tally.count += 1
        tally.cost += work.cost

    def withdraw(self, work: Work) -> bool:
        """Free the place of waiting work; False where it does not wait (any more)."""
        if not self.queue.remove(work):
            return False
        self._uncount(work)
        return True

    def drain(self) -> list[Work]:
        """Take out everything that waits and has not run yet."""
        self._tallies.clear()
        return self.queue.drain()

    def abandon(self) -> list[Work]:
        """Take out everything, running or not."""
        works = [work for flight in self.flights for work in flight.works]
        works += [work for retry in self._retries for work in retry]
        self.flights.clear()
        self._retries.clear()
        return works + self.drain()

    def can_launch(self) -> bool:
        """Whether the device should get a batch now."""
        if not self.flights:
            return bool(self._retries or self.queue)
        if len(self.flights) >= _LAUNCH_DEPTH or self._retries:
            return False
        # Memory that ran out is not asked for twice over.
        if self.limit.is_reduced or not any(map(self._fills_a_batch, self._tallies)):
            return False
        first = self.queue.peek()
        return first is not None and self._fills_a_batch(first.operation)

    def launch(self, dropped: list[Work]) -> Flight | None:
        """Take the next batch from what waits; None where nobody wants any of it.

        Args:
            dropped: receives what nobody wants any more.
        """
        works = self._retried(dropped) if self._retries else self._gathered(dropped)
        if not works:
            return None
        flight = Flight(works, self._clock())
        self.flights.append(flight)
        return flight

    def answered(self, flight: Flight) -> float:
        """The first flight came back; gives the seconds that the device worked on it."""
        now_s, cost = self._clock(), flight.cost
        # A batch behind another begins when that one ends.
        engine_s = now_s - max(flight.begun_s, self._device_free_s)
        self._land(now_s)
        self._costs = _FORGETTING * self._costs + cost
        self._squared_costs = _FORGETTING * self._squared_costs + sum(work.cost**2 for work in flight.works)
        if all(work.is_typical for work in flight.works):
            self.latency.observe(flight.operation.name, cost=cost, duration_s=engine_s)
        return engine_s

    def failed(self, flight: Flight) -> bool:
        """The first flight failed; False for a lone item, otherwise its halves will be tried again."""
        self._land(self._clock())
        works = flight.works
        if len(works) == 1:
            return False
        middle = (len(works) + 1) // 2
        self._retries.extendleft([works[middle:], works[:middle]])
        return True

    def backlog_s(self, lane: Lane | None = None) -> float:
        """Estimated seconds until work put now at the end of the lane would begin; None: behind everything."""
        ledger = self.queue.ledger
        return self._running_s() + self._work_s(ledger.cost() if lane is None else ledger.lane_cost_ahead(lane))

    def answer_s(self, claim: Claim, cost: float) -> float:
        """Estimated seconds until the engine has answered so much new work of the claim."""
        return self._running_s() + self._work_s(self.queue.ledger.cost_ahead(claim, cost) + cost)

    def _fills_a_batch(self, operation: Operation[Any, Any]) -> bool:
        tally = self._tallies[operation]
        places = self.limit.value
        return tally.count >= places or tally.cost >= places * operation.place_cost * (1 - _ROUNDING)

    def _gathered(self, dropped: list[Work]) -> list[Work]:
        """The work whose turn it is, and others of its operation in order of turns, up to the batch limit."""
        first = self._take(None, dropped)
        if first is None:
            return []
        works = [first]
        operation, places = first.operation, self.limit.value
        room = places * operation.place_cost * (1 + _ROUNDING) - first.cost

        def fits(work: Work) -> bool:
            return work.operation is operation and work.cost <= room

        while len(works) < places and operation in self._tallies and room > _ROUNDING:
            work = self._take(fits, dropped)
            if work is None:
                break
            works.append(work)
            room -= work.cost
        return works

    def _take(self, matches: Callable[[Work], bool] | None, dropped: list[Work]) -> Work | None:
        while (work := self.queue.take_matching(matches)) is not None:
            self._uncount(work)
            if work.drop_cause(self._clock()) is None:
                return work
            dropped.append(work)
        return None

    def _retried(self, dropped: list[Work]) -> list[Work]:
        places = self.limit.value
        failed, works = self._retries.popleft(), list[Work]()
        if len(failed) > places:
            self._retries.appendleft(failed[places:])
        for work in failed[:places]:
            (works if work.drop_cause(self._clock()) is None else dropped).append(work)
        return works

    def _uncount(self, work: Work) -> None:
        tally = self._tallies[work.operation]
        tally.count -= 1
        tally.cost -= work.cost
        if not tally.count:
            del self._tallies[work.operation]

    def _land(self, now_s: float) -> None:
        self.flights.popleft()
        self._device_free_s = now_s

    def _running_s(self) -> float:
        """Estimated seconds until what runs now is done."""
        if not self.flights:
            return 0.0
        begun_s = max(self.flights[0].begun_s, self._device_free_s)
        total_s = sum(self.latency.seconds(flight.cost, operation=flight.operation.name) for flight in self.flights)
        return max(total_s - (self._clock() - begun_s), 0.0)

    def _work_s(self, cost: float) -> float:
        """Estimated seconds for so much cost, in batches as full as they get."""
        # The mean weighs items by their cost: many cheap texts say little of a batch of images.
        item_cost = self._squared_costs / self._costs if self._costs else 1.0
        full_cost = self.limit.value * item_cost
        batch_count = math.ceil(cost / full_cost - _ROUNDING)
        # Others gather behind: with more than a batch at hand the last one will be full as well.
        return self.latency.seconds(batch_count * full_cost if batch_count > 1 else cost, batch_count)
