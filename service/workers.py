"""Pools of threads beside the event loop, for look-ups, with a bound on what waits; knows no gRPC.

Threads, not processes: NumPy and FAISS release the interpreter lock while they search, what they read is mapped once,
and a thread starts at once. A full pool refuses at once; work whose caller has gone is cancelled before it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from phosphene.errors import DeadlineExpired, Overloaded
from service.batching.latency import retry_after_s

__all__ = ["WorkerPool"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WorkerPool:
    """A bounded pool of threads for short work beside the event loop; an async context manager that owns them."""

    def __init__(
        self, *, worker_count: int, queue_limit: int, clock: Callable[[], float], what: str, setting: str
    ) -> None:
        """Prepare the pool.

        Args:
            worker_count: threads.
            queue_limit: most calls that wait or run; one more is refused.
            clock: monotonic seconds; deadlines are times of this clock.
            what: what waits here, for messages ("images wait for a decode worker").
            setting: the variable that sets `queue_limit`, for messages.
        """
        self._executor = ThreadPoolExecutor(worker_count, thread_name_prefix="phosphene-worker")
        self._worker_count = worker_count
        self._queue_limit = queue_limit
        self._clock = clock
        self._what = what
        self._setting = setting
        self._held_count = 0
        self._call_s = 0.01

    async def __aenter__(self) -> Self:
        """Nothing to start: threads begin with the first work."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what waits, let what runs end, and join the threads."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    @property
    def held_count(self) -> int:
        """Calls that wait or run now."""
        return self._held_count

    async def run(
        self,
        function: Callable[Arguments, Result],
        deadline_s: float | None,
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Result:
        """Call `function` in a worker.

        Args:
            function: what to call.
            deadline_s: time of the injected clock after which nobody waits for the result.
            arguments: for the function.
            keywords: for the function.

        Raises:
            Overloaded: the pool is full.
            DeadlineExpired: the deadline passed before a worker was free.
            Exception: whatever the function raises.
        """
        if self._held_count >= self._queue_limit:
            wait_s = retry_after_s(self._held_count * self._call_s / self._worker_count)
            raise Overloaded(
                f"{self._held_count} {self._what}, the limit ({self._setting}); try again in {wait_s:.2f} s",
                retry_after_s=wait_s,
            )

        def call() -> tuple[Result, float]:
            begun_s = self._clock()
            if deadline_s is not None and begun_s >= deadline_s:
                raise DeadlineExpired(f"the deadline passed while {self._what}; allow more time")
            result = function(*arguments, **keywords)
            return result, self._clock() - begun_s

        future = self._executor.submit(call)
        self._held_count += 1
        # Not in a `finally`: a cancelled caller leaves a running call behind, which still holds a thread.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _tell(loop, self._release))
        result, call_s = await asyncio.wrap_future(future)
        self._call_s = 0.8 * self._call_s + 0.2 * call_s
        return result

    def _release(self) -> None:
        self._held_count -= 1


def _tell(loop: asyncio.AbstractEventLoop, release: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(release)
