"""The dynamic batcher: the engine takes what gathered while it worked; knows neither torch nor gRPC.

Greedy and without a timer: when the device becomes free it gets the item whose turn it is and others of the same
operation, up to the batch limit, so that an idle service answers at once and a busy one batches by itself (the design
of text-embeddings-inference, core/src/queue.rs). While a batch runs, a full one is launched behind it, so that a busy
device never waits for Python; less than a full one goes on gathering.

Two threads: the engine thread gathers and launches batches, the collector waits for the device and hands answers back,
a whole batch at a time. A batch that fails is halved and tried again, so that one bad item harms no other. Work whose
caller has gone or whose deadline has passed costs no device time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from phosphene.errors import DeadlineExpired, DeviceFailed, DeviceOutOfMemory, Overloaded, Unavailable
from service.batching.batch_events import BatcherEvents, Drop, SilentEvents
from service.batching.latency import LatencyModel, retry_after_s
from service.batching.schedule import Schedule
from service.batching.stall import StallWatch
from service.batching.work import Flight, Operation, Work, operation
from service.claims import Claim, Lane

__all__ = ["Batcher", "BatcherEvents", "Drop", "Operation", "SilentEvents", "operation"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Clock = Callable[[], float]
_Answer = tuple[Work, Any, BaseException | None]


class Batcher:
    """A bounded, fair queue in front of one device; an async context manager that owns the engine's threads."""

    def __init__(
        self,
        *,
        batch_limit: int,
        queue_limit: int,
        clock: Clock,
        events: BatcherEvents | None = None,
        bulk_share: float = 0.25,
        stall_s: float = 60.0,
        on_stall_changed: Callable[[bool], None] | None = None,
    ) -> None:
        """Prepare the queue.

        Args:
            batch_limit: most items in one batch.
            queue_limit: most items that wait; one more is refused.
            clock: monotonic seconds; deadlines are times of this clock.
            events: told of batches, drops and depth.
            bulk_share: share of the device that the bulk lane gets while both lanes wait.
            stall_s: seconds of work without a successful batch after which the device counts as stalled.
            on_stall_changed: told on the event loop when the device stalls, and when it answers again.
        """
        self._queue_limit = queue_limit
        self._stall_s = stall_s
        self._clock = clock
        self._events: BatcherEvents = events if events is not None else SilentEvents()
        self._lock = threading.Lock()
        self._may_launch = threading.Condition(self._lock)
        self._may_collect = threading.Condition(self._lock)
        # Guarded by the lock.
        self._schedule = Schedule(batch_limit=batch_limit, bulk_share=bulk_share, clock=clock)
        self._is_closing = False
        self._is_launching_over = False
        self._failure: DeviceFailed | None = None
        # Used on the event loop only.
        self._loop: asyncio.AbstractEventLoop
        self._failed = asyncio.Event()
        self._stall = StallWatch(limit_s=stall_s, clock=clock, on_changed=on_stall_changed)
        self._threads = [
            threading.Thread(target=self._guard, args=(body,), name=f"phosphene-{name}", daemon=True)
            for name, body in (("engine", self._launch_all), ("collector", self._collect_all))
        ]

    async def __aenter__(self) -> Self:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._events.batch_limit_changed(self.batch_limit)
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Refuse what still waits, let running batches end, join the threads; a device that hangs is left behind."""
        with self._lock:
            self._is_closing = True
            left = self._schedule.drain()
            self._tell_depth(*Lane)
            self._may_launch.notify()
            self._may_collect.notify()
        for work in left:
            self._events.dropped(Drop.CLOSED)
            _settle(work, None, _closing())
        # Who has not answered for so long will not: its threads end with the process.
        patience_s = 0.0 if self.is_stalled else self._stall_s
        await asyncio.gather(*(asyncio.to_thread(thread.join, patience_s) for thread in self._threads))
        if any(thread.is_alive() for thread in self._threads):
            self._fail(DeviceFailed(f"it has not answered for {self._stall_s:g} s (PHOSPHENE_STALL_S)"))
        self._stall.close()

    async def run(self, operation: Operation[Item, Result], item: Item, *, claim: Claim | None = None) -> Result:
        """Answer one item.

        Args:
            operation: what to do with it.
            item: what the operation's `launch` receives.
            claim: on whose behalf, and until when; None: interactive, by nobody in particular, without a deadline.

        Raises:
            Overloaded: the queue is full.
            DeadlineExpired: the deadline passed before the answer was there.
            Unavailable: the service is closing or the device has failed.
            DeviceOutOfMemory: the item does not fit into the device even alone.
            Exception: whatever the operation raised for this item alone.
        """
        claim = claim or Claim()
        work = Work(operation, item, claim, operation.cost(item), self._clock(), self._loop.create_future())
        if work.drop_cause(work.queued_s) is not None:
            self._events.dropped(Drop.EXPIRED)
            raise _expired()
        self._put(work)
        try:
            result: Result = await work.answer
        except asyncio.CancelledError:
            self._withdraw(work)
            raise
        return result

    async def failed(self) -> DeviceFailed:
        """Wait until the device has failed for good; the error says how."""
        await self._failed.wait()
        assert self._failure is not None, "set before the event"
        return self._failure

    @property
    def is_stalled(self) -> bool:
        """Whether there has been work for `stall_s` without a successful batch."""
        return self._stall.is_stalled

    @property
    def depth(self) -> int:
        """Items that wait now."""
        return len(self._schedule.queue)

    @property
    def batch_limit(self) -> int:
        """Most items of a batch now; less than configured after the device ran out of memory."""
        return self._schedule.limit.value

    @property
    def latency(self) -> LatencyModel:
        """What batches have taken; to be read only."""
        return self._schedule.latency

    def oldest_s(self) -> float:
        """How long the oldest waiting item has waited; may be called from any thread."""
        with self._lock:
            oldest = self._schedule.queue.oldest()
        return 0.0 if oldest is None else self._clock() - oldest.queued_s

    def backlog_s(self, lane: Lane) -> float:
        """Estimated seconds until work put now at the end of the lane would begin."""
        with self._lock:
            return self._schedule.backlog_s(lane)

    def answer_s(self, claim: Claim, cost: float) -> float:
        """Estimated seconds until new work of this claim would be answered.

        Args:
            claim: whose work; it waits for its own and for a fair share of that of others.
            cost: of the work, and of everything else that will reach the queue before it, in block-passes.
        """
        with self._lock:
            return self._schedule.answer_s(claim, cost)

    # -- on the event loop

    def _put(self, work: Work) -> None:
        with self._lock:
            if self._failure is not None:
                raise _broken(self._failure)
            if self._is_closing:
                raise _closing()
            if self.depth >= self._queue_limit:
                raise _full(self.depth, self._schedule.backlog_s())
            self._schedule.put(work)
            self._tell_depth(work.claim.lane)
            self._wake_launcher()
        self._stall.busy()

    def _withdraw(self, work: Work) -> None:
        """Free the place of work whose caller has gone, unless the engine has it already."""
        with self._lock:
            if self._schedule.withdraw(work):
                self._events.dropped(Drop.CANCELLED)
                self._tell_depth(work.claim.lane)
                self._wake_launcher()
        self._rest()

    def _deliver(self, answers: Sequence[_Answer], has_succeeded: bool) -> None:
        now_s = self._clock()
        for work, result, error in answers:
            is_late = error is None and work.drop_cause(now_s) == Drop.EXPIRED
            _settle(work, result, _expired() if is_late else error)
        if has_succeeded:
            self._stall.succeeded()
        self._rest()

    def _rest(self) -> None:
        with self._lock:
            is_idle = self._schedule.is_idle
        if is_idle:
            self._stall.idle()

    # -- on the engine thread

    def _launch_all(self) -> None:
        while (flight := self._next_flight()) is not None:
            try:
                collect = flight.operation.launch([work.item for work in flight.works])
            except DeviceFailed as error:
                self._fail(error)
                continue
            except Exception as error:
                collect = _raiser(error)
            with self._lock:
                flight.collect = collect
                self._may_collect.notify()
        with self._lock:
            self._is_launching_over = True
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
                self._send([(work, None, _expired()) for work in dropped])
            if flight is not None:
                return flight

    def _has_something_to_do(self) -> bool:
        return self._is_over() or self._schedule.can_launch()

    def _is_over(self) -> bool:
        return self._failure is not None or (self._is_closing and not self._schedule.is_running)

    def _wake_launcher(self) -> None:
        # Waking the thread for nothing would cost more than the rest of a hand-over.
        if self._has_something_to_do():
            self._may_launch.notify()

    # -- on the collector thread

    def _collect_all(self) -> None:
        while (flight := self._next_launched()) is not None:
            assert flight.collect is not None, "it was launched"
            try:
                results = flight.collect()
                _check_count(flight, results)
            except DeviceFailed as error:
                self._fail(error)
            except Exception as error:
                self._retry(flight, error)
            else:
                self._answer(flight, results)

    def _next_launched(self) -> Flight | None:
        """Wait for the first flight to be launched; None at the end."""
        flights = self._schedule.flights

        def is_ready() -> bool:
            return bool(flights) and flights[0].collect is not None

        with self._lock:
            self._may_collect.wait_for(lambda: is_ready() or self._is_launching_over or self._failure is not None)
            return flights[0] if is_ready() else None

    def _answer(self, flight: Flight, results: Sequence[Any]) -> None:
        with self._lock:
            if self._failure is not None:
                return
            engine_s = self._schedule.answered(flight)
            has_grown = self._schedule.limit.succeeded()
            self._wake_launcher()
        self._send([(work, result, None) for work, result in zip(flight.works, results, strict=True)], True)
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
            if self._failure is not None:
                return
            if is_out_of_memory:
                self._schedule.limit.out_of_memory(len(flight.works))
            has_halves = self._schedule.failed(flight)
            self._wake_launcher()
        if not has_halves:
            self._send([(flight.works[0], None, error)])
        if is_out_of_memory:
            self._events.out_of_memory(self.batch_limit)

    # -- on any thread

    def _guard(self, body: Callable[[], None]) -> None:
        """Run a thread's body; if it breaks, nobody is left waiting for it."""
        try:
            body()
        except BaseException as error:
            failure = DeviceFailed(f"the engine's thread broke on {type(error).__name__}")
            failure.__cause__ = error
            self._fail(failure)

    def _fail(self, error: DeviceFailed) -> None:
        """Answer everything that waits or runs, and refuse from now on."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            works = self._schedule.abandon()
            self._tell_depth(*Lane)
            self._may_launch.notify()
            self._may_collect.notify()
        self._send([(work, None, _broken(error)) for work in works])
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._failed.set)

    def _send(self, answers: Sequence[_Answer], has_succeeded: bool = False) -> None:
        """Hand answers to the event loop in one call; a closed loop has nobody left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, answers, has_succeeded)

    def _tell_depth(self, *lanes: Lane) -> None:
        for lane in lanes:
            self._events.depth_changed(self._schedule.queue.count(lane), lane)


def _settle(work: Work, result: Any, error: BaseException | None) -> None:
    if work.answer.done():
        return
    if error is not None:
        work.answer.set_exception(error)
    else:
        work.answer.set_result(result)


def _raiser(error: Exception) -> Callable[[], Sequence[Any]]:
    def collect() -> Sequence[Any]:
        raise error

    return collect


def _check_count(flight: Flight, results: Sequence[Any]) -> None:
    if len(results) != len(flight.works):
        raise RuntimeError(
            f"operation {flight.operation.name} gave {len(results)} results for {len(flight.works)} items"
        )


def _expired() -> DeadlineExpired:
    return DeadlineExpired("the deadline passed while the image waited for the engine; allow more time")


def _full(depth: int, backlog_s: float) -> Overloaded:
    wait_s = retry_after_s(backlog_s)
    return Overloaded(
        f"{depth} images wait for the engine, the limit (PHOSPHENE_QUEUE_IMAGES); try again in {wait_s:.2f} s",
        retry_after_s=wait_s,
    )


def _closing() -> Unavailable:
    return Unavailable("the service is shutting down; ask another instance")


def _broken(error: DeviceFailed) -> Unavailable:
    return Unavailable(f"the device of this instance failed ({error}); ask another instance")
