"""The two threads of a device, and the schedule that they share with the event loop; knows no futures and no stalls.

The engine thread gathers and launches batches, the collector waits for the device and hands answers back, a whole batch
at a time. A batch that fails is halved and tried again, so that one bad item harms no other. Whoever owns the threads
is told of answers on them.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from phosphene.errors import DeadlineExpired, DeviceFailed, DeviceOutOfMemory, Unavailable
from service.batching.batch_events import BatcherEvents, Drop
from service.batching.latency import LatencyModel
from service.batching.refusals import closing, expired, overloaded
from service.batching.schedule import Schedule
from service.batching.work import Flight, Work
from service.claims import Claim, Lane

__all__ = ["EngineAnswer", "EngineThreads", "expired_in_queue"]

EngineAnswer: TypeAlias = tuple[Work, Any, BaseException | None]
"""What became of one item: its result, or the error instead of it."""


class EngineThreads:
    """A schedule and what works on it; every method may be called from any thread."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        events: BatcherEvents,
        answer: Callable[[Sequence[EngineAnswer], bool], None],
        on_failed: Callable[[], None],
    ) -> None:
        """Prepare the threads.

        Args:
            schedule: what the device does next; nobody else's.
            events: told of batches, drops and depth.
            answer: told of answers, and whether the device gave them; called without the lock.
            on_failed: told once when the device has failed for good.
        """
        self._events = events
        self._answer = answer
        self._on_failed = on_failed
        self._lock = threading.Lock()
        self._may_launch = threading.Condition(self._lock)
        self._may_collect = threading.Condition(self._lock)
        # Guarded by the lock.
        self._schedule = schedule
        self._is_closing = False
        self._is_launching_over = False
        self.failure: DeviceFailed | None = None
        """How the device failed for good; None while it works."""
        self.threads = [
            threading.Thread(target=self._guard, args=(body,), name=f"phosphene-{name}", daemon=True)
            for name, body in (("engine", self._launch_all), ("collector", self._collect_all))
        ]
        """For whoever waits until they have ended."""

    def start(self) -> None:
        """Begin to work."""
        for thread in self.threads:
            thread.start()

    def put(self, work: Work, *, queue_limit: int) -> None:
        """Let work wait for its turn.

        Raises:
            Overloaded: as much waits as may.
            Unavailable: the threads end, or the device has failed.
        """
        with self._lock:
            if self.failure is not None:
                raise _broken(self.failure)
            if self._is_closing:
                raise closing()
            if self.depth >= queue_limit:
                raise overloaded(
                    f"{self.depth} images wait for the engine, the limit (PHOSPHENE_QUEUE_IMAGES)",
                    backlog_s=self._schedule.backlog_s(),
                )
            self._schedule.put(work)
            self._tell_depth(work.claim.lane)
            self._wake_launcher()

    def withdraw(self, work: Work) -> None:
        """Free the place of work whose caller has gone, unless the engine has it already."""
        with self._lock:
            if self._schedule.withdraw(work):
                self._events.dropped(Drop.CANCELLED)
                self._tell_depth(work.claim.lane)
                self._wake_launcher()

    def close(self) -> list[Work]:
        """Take in nothing more, and end once what runs is done; gives what waited, which nobody will answer."""
        with self._lock:
            self._is_closing = True
            left = self._schedule.drain()
            self._tell_depth(*Lane)
            self._may_launch.notify()
            self._may_collect.notify()
        return left

    def fail(self, error: DeviceFailed) -> None:
        """Answer everything that waits or runs, and refuse from now on."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
            works = self._schedule.abandon()
            self._tell_depth(*Lane)
            self._may_launch.notify()
            self._may_collect.notify()
        self._answer([(work, None, _broken(error)) for work in works], False)
        self._on_failed()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        with self._lock:
            return self._schedule.is_idle

    @property
    def depth(self) -> int:
        """Items that wait now."""
        return len(self._schedule.queue)

    @property
    def batch_limit(self) -> int:
        """Most items of a batch now."""
        return self._schedule.limit.value

    @property
    def latency(self) -> LatencyModel:
        """What batches have taken; to be read only."""
        return self._schedule.latency

    def oldest(self) -> Work | None:
        """The item that has waited longest; None where nothing waits."""
        with self._lock:
            return self._schedule.queue.oldest()

    def backlog_s(self, lane: Lane) -> float:
        """Estimated seconds until work put now at the end of the lane would begin."""
        with self._lock:
            return self._schedule.backlog_s(lane)

    def answer_s(self, claim: Claim, cost: float) -> float:
        """Estimated seconds until so much new work of this claim would be answered."""
        with self._lock:
            return self._schedule.answer_s(claim, cost)

    # -- on the engine thread

    def _launch_all(self) -> None:
        while (flight := self._next_flight()) is not None:
            try:
                self._launch(flight)
            except DeviceFailed as error:
                self.fail(error)
        with self._lock:
            self._is_launching_over = True
            self._may_collect.notify()

    def _launch(self, flight: Flight) -> None:
        """Start a batch, whose memory on the device nothing but the flight keeps from then on."""
        try:
            collect = flight.operation.launch([work.item for work in flight.works])
        except DeviceFailed:
            raise
        except Exception as error:
            _let_go(error)
            collect = _raiser(error)
        with self._lock:
            flight.collect = collect
            self._may_collect.notify()

    def _next_flight(self) -> Flight | None:
        """Wait until a batch may be launched and take it; None at the end."""
        while True:
            dropped: list[Work] = []
            with self._lock:
                self._may_launch.wait_for(self._has_something_to_do)
                if self._is_over():
                    return None
                flight = self._schedule.launch(dropped)
                self._tell_depth(*Lane)
            for work in dropped:
                self._events.dropped(Drop.CANCELLED if work.answer.cancelled() else Drop.EXPIRED)
            if dropped:
                self._answer([(work, None, expired_in_queue()) for work in dropped], False)
            if flight is not None:
                return flight

    def _has_something_to_do(self) -> bool:
        return self._is_over() or self._schedule.can_launch()

    def _is_over(self) -> bool:
        return self.failure is not None or (self._is_closing and not self._schedule.is_running)

    def _wake_launcher(self) -> None:
        # Waking the thread for nothing would cost more than the rest of a hand-over.
        if self._has_something_to_do():
            self._may_launch.notify()

    # -- on the collector thread

    def _collect_all(self) -> None:
        while (flight := self._next_launched()) is not None:
            try:
                results = _collected(flight)
            except DeviceFailed as error:
                self.fail(error)
            except Exception as error:
                _let_go(error)
                self._retry(flight, error)
            else:
                self._succeed(flight, results)

    def _next_launched(self) -> Flight | None:
        """Wait for the first flight to be launched; None at the end."""
        flights = self._schedule.flights

        def is_ready() -> bool:
            return bool(flights) and flights[0].collect is not None

        with self._lock:
            self._may_collect.wait_for(lambda: is_ready() or self._is_launching_over or self.failure is not None)
            return flights[0] if is_ready() else None

    def _succeed(self, flight: Flight, results: Sequence[Any]) -> None:
        with self._lock:
            if self.failure is not None:
                return
            engine_s = self._schedule.answered(flight)
            has_grown = self._schedule.limit.succeeded()
            self._wake_launcher()
        self._answer([(work, result, None) for work, result in zip(flight.works, results, strict=True)], True)
        self._events.device_succeeded()
        self._events.batch_done(
            operation=flight.operation.name,
            size=len(flight.works),
            queue_s=[flight.begun_s - work.queued_s for work in flight.works],
            engine_s=engine_s,
            cost=flight.cost,
        )
        if has_grown:
            self._events.batch_limit_changed(self.batch_limit)

    def _retry(self, flight: Flight, error: Exception) -> None:
        """Have the halves of a failed batch tried again; a lone item fails with its error."""
        is_out_of_memory = isinstance(error, DeviceOutOfMemory)
        with self._lock:
            if self.failure is not None:
                return
            if is_out_of_memory:
                self._schedule.limit.out_of_memory(len(flight.works))
            has_halves = self._schedule.failed(flight)
            self._wake_launcher()
        if not has_halves:
            self._answer([(flight.works[0], None, error)], False)
        if is_out_of_memory:
            self._events.out_of_memory(self.batch_limit)

    # -- on any of them

    def _guard(self, body: Callable[[], None]) -> None:
        """Run a thread's body; if it breaks, nobody is left waiting for it."""
        try:
            body()
        except BaseException as error:
            failure = DeviceFailed(f"the engine's thread broke on {type(error).__name__}")
            failure.__cause__ = error
            self.fail(failure)

    def _tell_depth(self, *lanes: Lane) -> None:
        for lane in lanes:
            self._events.depth_changed(self._schedule.queue.count(lane), lane)


def expired_in_queue() -> DeadlineExpired:
    """What work is answered that waited for the engine until its deadline."""
    return expired("while the image waited for the engine")


def _raiser(error: Exception) -> Callable[[], Sequence[Any]]:
    def collect() -> Sequence[Any]:
        raise error

    return collect


def _collected(flight: Flight) -> Sequence[Any]:
    """Wait for the results of a flight, which keeps nothing on the device any longer."""
    assert flight.collect is not None, "it was launched"
    collect, flight.collect = flight.collect, None
    results = collect()
    if len(results) != len(flight.works):
        raise RuntimeError(
            f"operation {flight.operation.name} gave {len(results)} results for {len(flight.works)} items"
        )
    return results


def _let_go(error: BaseException) -> None:
    """Free what the frames that failed hold: the error outlives them, and a smaller batch needs their memory."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _broken(error: DeviceFailed) -> Unavailable:
    return Unavailable(f"the device of this instance failed ({error}); ask another instance")
