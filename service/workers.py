"""Threads beside the event loop for look-ups, in which callers take turns, with a bound on what waits; knows no gRPC.

Threads, not processes: NumPy and FAISS release the interpreter lock while they search, what they read is mapped once,
and a thread starts at once. A full pool refuses at once; work whose caller has gone is cancelled before it begins. Who
has other work to do first, such as the device's, takes its place before that, and is not refused after it. Such places
are counted apart: a full queue of the device keeps nobody from a look-up, and no flood of look-ups keeps images out.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from service.batching.batch_events import Drop
from service.batching.fair_queue import FairQueue
from service.batching.refusals import closing, expired, overloaded
from service.batching.shares import Shares
from service.claims import Claim

__all__ = ["Place", "WorkerPool"]

Result = TypeVar("Result")


class WorkerPool:
    """A bounded, fair pool of threads for short work beside the event loop; an async context manager that owns them."""

    def __init__(
        self,
        *,
        worker_count: int,
        queue_limit: int,
        clock: Callable[[], float],
        what: str,
        setting: str,
        bulk_share: float = 0.25,
        on_dropped: Callable[[str], None] = lambda cause: None,
    ) -> None:
        """Prepare the pool.

        Args:
            worker_count: threads.
            queue_limit: most places of calls that wait or run, and as many again of those whose work comes later; one
                more is refused.
            clock: monotonic seconds; deadlines are times of this clock.
            what: what waits here, for messages ("images wait for a decode worker").
            setting: the variable that sets `queue_limit`, for messages.
            bulk_share: share of the calls that bulk gets while both lanes wait.
            on_dropped: told, on any thread, of a call that never began, and why: one of `Drop`.
        """
        self._executor = ThreadPoolExecutor(worker_count, thread_name_prefix="phosphene-worker")
        self._worker_count = worker_count
        self._clock = clock
        self._what = what
        self._setting = setting
        self._on_dropped = on_dropped
        # Used on the event loop only.
        self._now, self._later = Shares(queue_limit), Shares(queue_limit)
        self._call_s = 0.01
        self._is_open = True
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._queue: FairQueue[_Call[Any]] = FairQueue(bulk_share=bulk_share)
        self._busy_count = 0

    async def __aenter__(self) -> Self:
        """Nothing to start: threads begin with the first work."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Refuse what waits, let what runs end, and join the threads."""
        self._is_open = False
        with self._lock:
            left = self._queue.drain()
        for call in left:
            self._on_dropped(Drop.CLOSED)
            self._ended(call, None, closing())
        await asyncio.to_thread(self._executor.shutdown, wait=True)

    @property
    def held_count(self) -> int:
        """Places taken now."""
        return self._now.total + self._later.total

    def place(self, claim: Claim) -> Place:
        """A place for the calls of one request, one at a time; a context manager that takes none yet.

        Args:
            claim: on whose behalf, and until when.
        """
        return Place(self, claim)

    async def run(self, claim: Claim, function: Callable[[], Result]) -> Result:
        """Call `function` in a worker: the only call of a place; see `Place.run`."""
        with self.place(claim) as place:
            return await place.run(function)

    def _take_now(self, claim: Claim) -> Shares:
        return self._take(claim, self._now, self._what)

    def _take_later(self, claim: Claim) -> Shares:
        return self._take(claim, self._later, f"{self._what} or will")

    def _take(self, claim: Claim, shares: Shares, what: str) -> Shares:
        excess = shares.excess(claim, 1)
        if excess is not None:
            bound = excess.bound
            raise overloaded(
                f"{excess.held} {bound.of_which}{what}, {bound.limit} ({bound.share}{self._setting})",
                backlog_s=self.held_count * self._call_s / self._worker_count,
            )
        shares.take(claim, 1)
        return shares

    async def _call(self, call: _Call[Result]) -> Result:
        if self._is_open:
            self._begin(call)
        else:
            self._ended(call, None, closing())
        try:
            result, error = await call.outcome
        except asyncio.CancelledError:
            call.is_given_up = True
            with self._lock:
                was_waiting = self._queue.remove(call)
            if was_waiting:
                self._on_dropped(Drop.CANCELLED)
                call.place._call_ended()
            raise
        if error is not None:
            raise error
        return cast(Result, result)

    def _begin(self, call: _Call[Any]) -> None:
        with self._lock:
            if self._busy_count == self._worker_count:
                self._queue.put(call, claim=call.place.claim, cost=1.0)
                return
            self._busy_count += 1
        self._executor.submit(self._work, call, asyncio.get_running_loop())

    def _work(self, call: _Call[Any] | None, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: answer this call, and whose turn it is after it, until nothing waits."""
        while call is not None:
            result, error, begun_s = None, None, self._clock()
            try:
                result = self._answer(call, begun_s)
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._ended, call, result, error, self._clock() - begun_s)
            del result, error
            with self._lock:
                call = self._queue.take()
                if call is None:
                    self._busy_count -= 1

    def _answer(self, call: _Call[Result], now_s: float) -> Result | None:
        if call.is_given_up:
            self._on_dropped(Drop.CANCELLED)
            return None
        deadline_s = call.place.claim.deadline_s
        if deadline_s is not None and now_s >= deadline_s:
            self._on_dropped(Drop.EXPIRED)
            raise expired(f"while {self._what}")
        return call.function()

    def _ended(self, call: _Call[Any], result: Any, error: BaseException | None, call_s: float | None = None) -> None:
        if call_s is not None and error is None and not call.is_given_up:
            self._call_s = 0.8 * self._call_s + 0.2 * call_s
        if not call.outcome.done():
            call.outcome.set_result((result, error))
        call.place._call_ended()


class Place:
    """Where one request's calls wait and run; a context manager that gives the place back."""

    def __init__(self, pool: WorkerPool, claim: Claim) -> None:
        """Made by `WorkerPool.place` only."""
        self.claim = claim
        """On whose behalf."""
        self._pool = pool
        self._shares: Shares | None = None
        self._is_left = False
        self._is_running = False

    def __enter__(self) -> Place:
        """Nothing is taken before it is needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the place back; a call that its caller has left behind keeps it until it ends, for it holds a thread."""
        self._is_left = True
        self._release()

    def reserve(self) -> None:
        """Take the place before other work, so that the call after that work is not refused.

        Raises:
            Overloaded: there is none.
        """
        if self._shares is None and not self._is_left:
            self._shares = self._pool._take_later(self.claim)

    async def run(self, function: Callable[[], Result]) -> Result:
        """Call `function` in a worker.

        Args:
            function: what to call.

        Raises:
            Overloaded: the pool is full; not after `reserve`.
            DeadlineExpired: the deadline passed before a worker was free.
            Unavailable: the pool is closed.
            Exception: whatever the function raises.
        """
        if self._shares is None:
            self._shares = self._pool._take_now(self.claim)
        self._is_running = True
        return await self._pool._call(_Call(function, self, asyncio.get_running_loop().create_future()))

    def _call_ended(self) -> None:
        self._is_running = False
        if self._is_left:
            self._release()

    def _release(self) -> None:
        if self._shares is not None and not self._is_running:
            self._shares.give_back(self.claim, 1)
            self._shares = None


@dataclass(eq=False)
class _Call(Generic[Result]):
    function: Callable[[], Result]
    place: Place
    outcome: asyncio.Future[tuple[Result | None, BaseException | None]]
    is_given_up: bool = False
    """Whether nobody waits for it any more; read by threads."""
