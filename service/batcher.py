"""The dynamic batcher: one engine thread that takes what gathered while it worked; knows neither torch nor gRPC.

Greedy and without a timer: when the thread becomes free it takes the oldest waiting item and all others of the same
lane up to the batch size, so that an idle service answers at once and a busy one batches by itself (the design of
text-embeddings-inference, core/src/queue.rs). The queue is bounded: a full one refuses at once and estimates when to
come back. Work whose caller has gone or whose deadline has passed costs no device time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from phosphene.errors import DeadlineExpired, Overloaded, PhospheneError

__all__ = ["Batcher", "BatcherEvents", "Drop", "Lane", "SilentEvents", "retry_after_s"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Clock = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Lane(Generic[Item, Result]):
    """Work that may share a batch: the same model doing the same thing."""

    name: str
    """What the lane does, for messages and metrics."""
    run: Callable[[Sequence[Item]], Sequence[Result]]
    """Answers a batch on the engine thread; one result for each item, in their order."""


class Drop:
    """Why work left the queue unanswered."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    CLOSED = "closed"


@runtime_checkable
class BatcherEvents(Protocol):
    """What an observer hears; called on the engine thread or the event loop, must be quick and must not raise."""

    def batch_done(self, *, lane: str, size: int, queue_s: Sequence[float], engine_s: float) -> None:
        """A batch was answered: its size, how long each item had waited, how long the engine worked."""

    def dropped(self, cause: str) -> None:
        """An item was dropped before it cost device time."""

    def depth_changed(self, depth: int) -> None:
        """The number of waiting items changed."""


class SilentEvents:
    """An observer that ignores everything."""

    def batch_done(self, *, lane: str, size: int, queue_s: Sequence[float], engine_s: float) -> None:
        """Ignored."""

    def dropped(self, cause: str) -> None:
        """Ignored."""

    def depth_changed(self, depth: int) -> None:
        """Ignored."""


@dataclass(eq=False)
class _Work:
    lane: Lane[Any, Any]
    item: Any
    deadline_s: float | None
    queued_s: float
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any] = field(repr=False)


class Batcher:
    """A bounded queue in front of one engine thread; an async context manager that owns the thread."""

    def __init__(
        self, *, queue_limit: int, batch_limit: int, clock: Clock, events: BatcherEvents | None = None
    ) -> None:
        """Prepare the queue.

        Args:
            queue_limit: most items that wait; one more is refused.
            batch_limit: most items in one batch.
            clock: monotonic seconds; deadlines are times of this clock.
            events: told of batches, drops and depth.
        """
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._clock = clock
        self._events: BatcherEvents = events if events is not None else SilentEvents()
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._item_s = 0.02
        self._thread = threading.Thread(target=self._work, name="phosphene-engine", daemon=True)

    async def __aenter__(self) -> Self:
        """Start the engine thread."""
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Refuse what still waits, let the running batch end, and join the thread."""
        with self._changed:
            self._is_closing = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        for work in left:
            self._drop(work, Drop.CLOSED)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    @property
    def depth(self) -> int:
        """Items that wait now."""
        return len(self._queue)

    async def run(self, lane: Lane[Item, Result], item: Item, *, deadline_s: float | None = None) -> Result:
        """Answer one item.

        Args:
            lane: what to do with it.
            item: what the lane's `run` receives.
            deadline_s: time of the injected clock after which nobody waits for the answer.

        Raises:
            Overloaded: the queue is full or the service is closing.
            DeadlineExpired: the deadline passed before the work began.
            Exception: whatever the lane raised for this item.
        """
        loop = asyncio.get_running_loop()
        work = _Work(lane, item, deadline_s, self._clock(), loop, loop.create_future())
        self._put(work)
        try:
            result: Result = await work.answer
        except asyncio.CancelledError:
            self._withdraw(work)
            raise
        return result

    def _put(self, work: _Work) -> None:
        with self._changed:
            if self._is_closing:
                raise Overloaded("the service is shutting down; ask another instance", retry_after_s=1.0)
            if len(self._queue) >= self._queue_limit:
                wait_s = retry_after_s(len(self._queue), self._item_s)
                raise Overloaded(
                    f"{len(self._queue)} images wait for the engine, the limit (PHOSPHENE_QUEUE_IMAGES); "
                    f"try again in {wait_s:.2f} s",
                    retry_after_s=wait_s,
                )
            self._queue.append(work)
            depth = len(self._queue)
            self._changed.notify()
        self._events.depth_changed(depth)

    def _withdraw(self, work: _Work) -> None:
        """Free the place of work whose caller has gone, unless the engine has it already."""
        with self._changed:
            if work not in self._queue:
                return
            self._queue.remove(work)
            depth = len(self._queue)
        self._events.dropped(Drop.CANCELLED)
        self._events.depth_changed(depth)

    def _work(self) -> None:
        """The engine thread: gather, run, deliver, until closed."""
        while (batch := self._take()) is not None:
            live = [work for work in batch if self._is_wanted(work)]
            if live:
                self._answer(live)

    def _take(self) -> list[_Work] | None:
        """Wait for work; the oldest item and all others of its lane, in order, up to the batch limit."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._is_closing)
            if self._is_closing:
                return None
            lane = self._queue[0].lane
            batch: list[_Work] = []
            left: deque[_Work] = deque()
            for work in self._queue:
                if work.lane is lane and len(batch) < self._batch_limit:
                    batch.append(work)
                else:
                    left.append(work)
            self._queue = left
            depth = len(left)
        self._events.depth_changed(depth)
        return batch

    def _is_wanted(self, work: _Work) -> bool:
        if work.answer.cancelled():
            self._events.dropped(Drop.CANCELLED)
            return False
        if work.deadline_s is not None and self._clock() >= work.deadline_s:
            self._drop(work, Drop.EXPIRED)
            return False
        return True

    def _answer(self, batch: Sequence[_Work]) -> None:
        """Run a batch; where it fails, run its items alone, so that one bad item harms no other."""
        lane = batch[0].lane
        begun_s = self._clock()
        try:
            results = _run_lane(lane, [work.item for work in batch])
        except Exception as error:
            if len(batch) == 1:
                _deliver(batch[0], error=error)
                return
            for work in batch:
                if self._is_wanted(work):
                    self._answer([work])
            return
        engine_s = self._clock() - begun_s
        self._item_s = 0.8 * self._item_s + 0.2 * engine_s / len(batch)
        self._events.batch_done(
            lane=lane.name,
            size=len(batch),
            queue_s=[begun_s - work.queued_s for work in batch],
            engine_s=engine_s,
        )
        for work, result in zip(batch, results, strict=True):
            _deliver(work, result=result)

    def _drop(self, work: _Work, cause: str) -> None:
        self._events.dropped(cause)
        error: PhospheneError
        if cause == Drop.EXPIRED:
            error = DeadlineExpired("the deadline passed while the image waited for the engine; allow more time")
        else:
            error = Overloaded("the service is shutting down; ask another instance", retry_after_s=1.0)
        _deliver(work, error=error)


def retry_after_s(waiting_count: int, item_s: float) -> float:
    """Seconds in which half of what waits will have been answered, within 0.05 and 30."""
    return min(max(waiting_count * item_s / 2, 0.05), 30.0)


def _run_lane(lane: Lane[Any, Any], items: Sequence[Any]) -> Sequence[Any]:
    results = lane.run(items)
    if len(results) != len(items):
        raise RuntimeError(f"lane {lane.name} gave {len(results)} results for {len(items)} items")
    return results


def _deliver(work: _Work, *, result: Any = None, error: BaseException | None = None) -> None:
    """Hand the answer to the event loop that waits for it; a closed loop has nobody left to tell."""

    def settle() -> None:
        if work.answer.done():
            return
        if error is not None:
            work.answer.set_exception(error)
        else:
            work.answer.set_result(result)

    with contextlib.suppress(RuntimeError):
        work.loop.call_soon_threadsafe(settle)
