"""The decode pool: images wait in fair order for worker processes that turn them into pixels; knows no gRPC, no device.

A decoder is the part of the service that strangers' bytes reach first. Each runs in a process that can be killed: an
image that takes too long or crashes its decoder fails alone, and the worker is replaced. An image whose worker crashed
or was killed by somebody else is tried once more, in a fresh worker: it may not be to blame. Work whose caller has gone
or whose deadline has passed is never begun.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Self

from phosphene.errors import ImageError, SettingError, Unavailable
from phosphene.image_limits import ImageLimits, check_file_size
from phosphene.images import PreparedImage
from phosphene.preprocessing import Preprocessing
from service.batching.fair_queue import FairQueue
from service.batching.latency import LatencyModel
from service.batching.refusals import closing, expired, overloaded
from service.claims import Claim
from service.decoding.decode_events import DecodeEvents
from service.decoding.job import Job, decode_cost
from service.decoding.process import Death, DecodeProcess, WorkerEnded, WorkerGone, open_decode_process
from service.observing.logs import log_event

__all__ = ["DecodeEvents", "DecodePool"]

_OPERATION = "decode"

OpenWorker = Callable[[ImageLimits, float], AbstractAsyncContextManager[DecodeProcess]]
"""Starts a worker for these limits and seconds for an image, and ends it."""


class DecodePool:
    """A bounded queue in front of decode workers; an async context manager that owns the processes."""

    def __init__(
        self,
        *,
        worker_count: int,
        queue_limit: int,
        time_limit_s: float,
        limits: ImageLimits,
        clock: Callable[[], float],
        events: DecodeEvents,
        bulk_share: float,
        open_worker: OpenWorker = open_decode_process,
    ) -> None:
        """Prepare the queue.

        Args:
            worker_count: processes.
            queue_limit: most images that wait; one more is refused.
            time_limit_s: how long one image may decode for.
            limits: what one image may cost.
            clock: monotonic seconds; deadlines are times of this clock.
            events: told of images, lost workers, drops and depth.
            bulk_share: share of the work that bulk gets while both lanes wait.
            open_worker: starts a worker.
        """
        self._worker_count = worker_count
        self._queue_limit = queue_limit
        self._time_limit_s = time_limit_s
        self._limits = limits
        self._clock = clock
        self._events = events
        self._open_worker = open_worker
        self._queue: FairQueue[Job] = FairQueue(bulk_share=bulk_share)
        # One at most for each worker that is being replaced.
        self._second_tries: deque[Job] = deque()
        self._latency = LatencyModel()
        self._running: set[Job] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._seats: list[asyncio.Task[None]] = []
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Start all workers at once and wait until they are ready.

        Raises:
            SettingError: a worker cannot be started.
        """
        loop = asyncio.get_running_loop()
        starts: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self._worker_count)]
        self._seats = [asyncio.create_task(self._serve(start), name="phosphene-decode") for start in starts]
        try:
            errors = await asyncio.gather(*starts, return_exceptions=True)
            for error in errors:
                if error is not None:
                    raise error
        except BaseException:
            await self._end_seats()
            raise
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Refuse what still waits, and kill the workers with what they have in hand."""
        self._is_open = False
        for job in (*self._queue.drain(), *self._second_tries):
            self._events.dropped("closed", "decode")
            job.fail(closing())
        self._second_tries.clear()
        self._events.decode_depth_changed(0)
        await self._end_seats()

    @property
    def depth(self) -> int:
        """Images that wait for a worker now."""
        return len(self._queue)

    def wait_s(self, claim: Claim) -> float:
        """Estimated seconds until a decode put now on behalf of this claim would begin."""
        if self._idle and not self._queue:
            return 0.0
        # What runs is half done, as a rule.
        running_cost = sum((job.cost for job in self._running), 0.0)
        running_s = self._latency.seconds(running_cost, len(self._running)) / 2
        waiting_s = 0.0
        if self._queue:
            mean_cost = self._queue.cost() / len(self._queue)
            ahead = self._queue.ledger.cost_ahead(claim, mean_cost)
            waiting_s = self._latency.seconds(ahead, math.ceil(ahead / mean_cost))
        return (running_s + waiting_s) / self._worker_count

    async def prepare(self, data: bytes, preprocessing: Preprocessing, *, claim: Claim) -> PreparedImage:
        """Prepare one image in a worker, as `phosphene.images.prepare` does.

        Args:
            data: the file as it arrived.
            preprocessing: what the encoder asks of its pixels.
            claim: on whose behalf, and until when.

        Raises:
            ImageError: the image cannot be used; `ImageTooSlow` beyond the time limit, `ImageUnreadable` also where it
                broke its decoder, or crashed two.
            Overloaded: the queue is full.
            DeadlineExpired: the deadline passed before a worker was free.
            Unavailable: the pool is closed, no worker can be started any more, or somebody killed two in the middle of
                this image.
        """
        if not self._is_open:
            raise closing()
        check_file_size(len(data), self._limits)
        if len(self._queue) >= self._queue_limit:
            raise overloaded(
                f"{len(self._queue)} images wait for a decode worker, the limit (PHOSPHENE_QUEUE_IMAGES)",
                backlog_s=self.wait_s(claim),
            )
        job = Job(
            data=data,
            preprocessing=preprocessing,
            claim=claim,
            cost=decode_cost(data),
            answer=asyncio.get_running_loop().create_future(),
        )
        self._queue.put(job, claim=claim, cost=job.cost)
        self._events.decode_depth_changed(len(self._queue))
        self._call_one()
        try:
            return await job.answer
        except asyncio.CancelledError:
            if self._queue.remove(job):
                self._events.dropped("cancelled", "decode")
                self._events.decode_depth_changed(len(self._queue))
            raise

    async def _serve(self, started: asyncio.Future[None]) -> None:
        """Keep one worker alive and at work, until cancelled."""
        while True:
            try:
                async with self._open_worker(self._limits, self._time_limit_s) as worker:
                    if not started.done():
                        started.set_result(None)
                    job = self._take_second_try() or await self._next_job(worker.ended)
                    while job is not None and await self._decode(worker, job):
                        job = await self._next_job(worker.ended)
            except SettingError as error:
                if not started.done():
                    started.set_exception(error)
                    return
                await self._fail_one(error)

    async def _fail_one(self, error: SettingError) -> None:
        """Where a worker cannot be replaced, the next image pays for the next attempt, so that none waits for ever."""
        never = asyncio.get_running_loop().create_future()
        if job := self._take_second_try() or await self._next_job(never):
            job.fail(Unavailable(f"{error}; until then ask another instance"))

    async def _next_job(self, ended: asyncio.Future[None]) -> Job | None:
        """Wait for work; None where the worker ended while it had none."""
        while not ended.done():
            if job := self._take():
                return job
            call: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def wake(_: asyncio.Future[None], call: asyncio.Future[None] = call) -> None:
                if not call.done():
                    call.set_result(None)

            self._idle.append(call)
            ended.add_done_callback(wake)
            try:
                await call
            finally:
                ended.remove_done_callback(wake)
                with suppress(ValueError):
                    self._idle.remove(call)
        # Whoever called this seat is owed another one.
        self._call_one()
        return None

    def _take(self) -> Job | None:
        """The next image that somebody still waits for."""
        while job := self._queue.take():
            self._events.decode_depth_changed(len(self._queue))
            if self._is_awaited(job):
                return job
        return None

    def _take_second_try(self) -> Job | None:
        """An image for a fresh worker that somebody still waits for."""
        while self._second_tries:
            job = self._second_tries.popleft()
            if self._is_awaited(job):
                return job
        return None

    def _is_awaited(self, job: Job) -> bool:
        """Whether somebody still waits for an image; where it is too late, that is told."""
        deadline_s = job.claim.deadline_s
        if job.answer.done():
            self._events.dropped("cancelled", "decode")
            return False
        if deadline_s is not None and self._clock() >= deadline_s:
            self._events.dropped("expired", "decode")
            job.fail(expired("before a decode worker was free"))
            return False
        return True

    async def _decode(self, worker: DecodeProcess, job: Job) -> bool:
        """Answer one image; tells whether the worker can go on."""
        begun_s = self._clock()
        self._running.add(job)
        try:
            async with asyncio.timeout(self._time_limit_s):
                image = await worker.prepare(job.data, job.preprocessing)
        except ImageError as error:
            job.fail(error)
            return True
        except WorkerGone:
            self._give_back(job)
            return False
        except WorkerEnded as error:
            self._lose_worker(job, error)
            return False
        except TimeoutError:
            self._events.decode_killed("timeout")
            job.take_too_long(self._time_limit_s)
            return False
        except asyncio.CancelledError:
            job.fail(closing())
            raise
        except Exception as error:
            # Whatever it is, one image has it, and the queue goes on.
            self._events.decode_killed("crash")
            job.fail(error)
            return False
        finally:
            self._running.discard(job)
        duration_s = self._clock() - begun_s
        self._latency.observe(_OPERATION, cost=job.cost, duration_s=duration_s)
        self._events.decode_done(
            duration_s=duration_s, size_bytes=len(job.data), pixel_count=image.width * image.height
        )
        job.succeed(image)
        return True

    def _give_back(self, job: Job) -> None:
        """Have another worker do what this one had not begun."""
        if job.has_lost_worker:
            self._second_tries.append(job)
            return
        self._queue.put(job, claim=job.claim, cost=job.cost)
        self._events.decode_depth_changed(len(self._queue))
        self._call_one()

    def _lose_worker(self, job: Job, error: WorkerEnded) -> None:
        """Judge an image in whose middle a worker ended, or leave that to another worker."""
        is_slow = error.death is Death.ALARM
        self._events.decode_killed("timeout" if is_slow else "crash")
        log_event(
            "decoder lost",
            level=logging.WARNING,
            cause=error.death.name.lower(),
            status=error.status,
            caller=job.claim.caller,
        )
        if job.lose_worker(error.death, time_limit_s=self._time_limit_s):
            self._second_tries.append(job)

    def _call_one(self) -> None:
        """Wake the seat that worked last: its memory is warm."""
        if self._idle and self._queue:
            self._idle.pop().set_result(None)

    async def _end_seats(self) -> None:
        for seat in self._seats:
            seat.cancel()
        for end in await asyncio.gather(*self._seats, return_exceptions=True):
            if isinstance(end, Exception):
                raise end
