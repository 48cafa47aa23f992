"""The dynamic batcher: the engine takes what gathered while it worked; knows neither torch nor gRPC.

Greedy and without a timer: when the device becomes free it gets the item whose turn it is and others of the same
operation, up to the batch limit, so that an idle service answers at once and a busy one batches by itself (the design
of text-embeddings-inference, core/src/queue.rs). While a batch runs, a full one is launched behind it, so that a busy
device never waits for Python; less than a full one goes on gathering. Work whose caller has gone or whose deadline has
passed costs no device time.

This is the side of the event loop; what works is in `engine_threads`, what comes next in `schedule`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from phosphene.errors import DeviceFailed
from service.batching.batch_events import BatcherEvents, Drop, SilentEvents
from service.batching.engine_threads import EngineAnswer, EngineThreads, expired_in_queue
from service.batching.latency import LatencyModel
from service.batching.refusals import closing
from service.batching.schedule import Schedule
from service.batching.stall import StallWatch
from service.batching.work import Operation, Work, operation
from service.claims import Claim, Lane

__all__ = ["Batcher", "BatcherEvents", "Drop", "Operation", "SilentEvents", "operation"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Clock = Callable[[], float]


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
        self._engine = EngineThreads(
            Schedule(batch_limit=batch_limit, bulk_share=bulk_share, clock=clock),
            events=self._events,
            answer=self._send,
            on_failed=self._tell_failed,
        )
        # Used on the event loop only.
        self._loop: asyncio.AbstractEventLoop
        self._failed = asyncio.Event()
        self._stall = StallWatch(limit_s=stall_s, clock=clock, on_changed=on_stall_changed)

    async def __aenter__(self) -> Self:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._events.batch_limit_changed(self.batch_limit)
        self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Refuse what still waits, let running batches end, join the threads; a device that hangs is left behind."""
        for work in self._engine.close():
            self._events.dropped(Drop.CLOSED)
            _settle(work, None, closing())
        # Who has not answered for so long will not: its threads end with the process.
        patience_s = 0.0 if self.is_stalled else self._stall_s
        threads = self._engine.threads
        await asyncio.gather(*(asyncio.to_thread(thread.join, patience_s) for thread in threads))
        if any(thread.is_alive() for thread in threads):
            self._engine.fail(DeviceFailed(f"it has not answered for {self._stall_s:g} s (PHOSPHENE_STALL_S)"))
        self._stall.close()

    async def run(
        self,
        operation: Operation[Item, Result],
        item: Item,
        *,
        claim: Claim | None = None,
        is_typical: bool = True,
    ) -> Result:
        """Answer one item.

        Args:
            operation: what to do with it.
            item: what the operation's `launch` receives.
            claim: on whose behalf, and until when; None: interactive, by nobody in particular, without a deadline.
            is_typical: whether its batch tells how long others take: not where it pays for lazy set-up.

        Raises:
            Overloaded: the queue is full.
            DeadlineExpired: the deadline passed before the answer was there.
            Unavailable: the service is closing or the device has failed.
            DeviceOutOfMemory: the item does not fit into the device even alone.
            Exception: whatever the operation raised for this item alone.
        """
        claim = claim or Claim()
        work = Work(operation, item, claim, operation.cost(item), self._clock(), self._loop.create_future(), is_typical)
        if work.drop_cause(work.queued_s) is not None:
            self._events.dropped(Drop.EXPIRED)
            raise expired_in_queue()
        self._engine.put(work, queue_limit=self._queue_limit)
        self._stall.busy()
        try:
            result: Result = await work.answer
        except asyncio.CancelledError:
            self._engine.withdraw(work)
            self._rest()
            raise
        finally:
            # Its answer may be an error, which has this frame.
            del work
        return result

    async def failed(self) -> DeviceFailed:
        """Wait until the device has failed for good; the error says how."""
        await self._failed.wait()
        assert self.failure is not None, "set before the event"
        return self.failure

    @property
    def failure(self) -> DeviceFailed | None:
        """How the device failed for good; None while it works."""
        return self._engine.failure

    @property
    def is_stalled(self) -> bool:
        """Whether there has been work for `stall_s` without a successful batch."""
        return self._stall.is_stalled

    @property
    def depth(self) -> int:
        """Items that wait now."""
        return self._engine.depth

    @property
    def batch_limit(self) -> int:
        """Most items of a batch now; less than configured after the device ran out of memory."""
        return self._engine.batch_limit

    @property
    def latency(self) -> LatencyModel:
        """What batches have taken; to be read only."""
        return self._engine.latency

    def oldest_s(self) -> float:
        """How long the oldest waiting item has waited; may be called from any thread."""
        oldest = self._engine.oldest()
        return 0.0 if oldest is None else self._clock() - oldest.queued_s

    def backlog_s(self, lane: Lane) -> float:
        """Estimated seconds until work put now at the end of the lane would begin."""
        return self._engine.backlog_s(lane)

    def answer_s(self, claim: Claim, cost: float) -> float:
        """Estimated seconds until new work of this claim would be answered.

        Args:
            claim: whose work; it waits for its own and for a fair share of that of others.
            cost: of the work, and of everything else that will reach the queue before it, in block-passes.
        """
        return self._engine.answer_s(claim, cost)

    def _deliver(self, answers: Sequence[EngineAnswer], has_succeeded: bool) -> None:
        now_s = self._clock()
        for work, result, error in answers:
            is_late = error is None and work.drop_cause(now_s) == Drop.EXPIRED
            _settle(work, result, expired_in_queue() if is_late else error)
        if has_succeeded:
            self._stall.succeeded()
        self._rest()

    def _rest(self) -> None:
        if self._engine.is_idle:
            self._stall.idle()

    # -- on the engine's threads; a closed loop has nobody left to tell

    def _send(self, answers: Sequence[EngineAnswer], has_succeeded: bool) -> None:
        """Hand answers to the event loop in one call."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, answers, has_succeeded)

    def _tell_failed(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._failed.set)


def _settle(work: Work, result: Any, error: BaseException | None) -> None:
    if work.answer.done():
        return
    if error is not None:
        work.answer.set_exception(error)
    else:
        work.answer.set_result(result)
