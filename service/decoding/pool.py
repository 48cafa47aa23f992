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
from functools import partial
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

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
from service.decoding.process import Death, WorkerEnded, WorkerGone, open_decode_process
from service.observing.logs import log_event

__all__ = ["DecodeEvents", "DecodePool"]

_OPERATION = "decode"


@runtime_checkable
class Worker(Protocol):
    """What is used of a `DecodeProcess`."""

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done once the worker is gone."""

    def begin(
        self, data: bytes, preprocessing: Preprocessing, done: Callable[[PreparedImage | Exception], None]
    ) -> None:
        """Begin to prepare one image, and tell what came of it."""


OpenWorker = Callable[[ImageLimits, float], AbstractAsyncContextManager[Worker]]
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
        self._idle: list[Callable[[Job], None]] = []
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

    async def prepare(
        self, data: bytes, preprocessing: Preprocessing, *, claim: Claim, pixel_count: int = 0
    ) -> PreparedImage:
        """Prepare one image in a worker, as `phosphene.images.prepare` does.

        Args:
            data: the file as it arrived.
            preprocessing: what the encoder asks of its pixels.
            claim: on whose behalf, and until when.
            pixel_count: width times height as the file tells; 0 where it does not.

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
            cost=decode_cost(pixel_count, data),
            answer=asyncio.get_running_loop().create_future(),
        )
        if self._queue or not self._idle:
            self._queue.put(job, claim=claim, cost=job.cost)
            self._events.decode_depth_changed(len(self._queue))
            self._call_one()
        elif self._is_awaited(job):
            # Nobody waits whose turn it could be.
            self._idle.pop()(job)
        try:
            return await job.answer
        except asyncio.CancelledError:
            if self._queue.remove(job):
                self._events.dropped("cancelled", "decode")
                self._events.decode_depth_changed(len(self._queue))
            raise
        finally:
            # Its answer may be an error, which has this frame.
            del job

    async def _serve(self, started: asyncio.Future[None]) -> None:
        """Keep one worker alive and at work, until cancelled."""
        while True:
            try:
                async with self._open_worker(self._limits, self._time_limit_s) as worker:
                    if not started.done():
                        started.set_result(None)
                    await self._work(worker)
            except SettingError as error:
                if not started.done():
                    started.set_exception(error)
                    return
                await self._fail_one(error)

    async def _fail_one(self, error: SettingError) -> None:
        """Where a worker cannot be replaced, the next image that no other takes pays for the next attempt."""
        paid: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def pay(job: Job) -> None:
            job.fail(Unavailable(f"{error}; until then ask another instance"))
            paid.set_result(None)

        if job := self._take_second_try() or self._take():
            pay(job)
        else:
            self._idle.insert(0, pay)  # Called last: where a worker is idle, no image has to pay.
        try:
            await paid
        finally:
            with suppress(ValueError):
                self._idle.remove(pay)

    async def _work(self, worker: Worker) -> None:
        """Have a worker take image after image until it ends, or has to."""
        seat = _Seat(worker, self._begin)
        worker.ended.add_done_callback(lambda _: seat.leave())
        try:
            self._occupy(seat.begin, self._take_second_try() or self._take())
            await seat.over
        except asyncio.CancelledError:
            if seat.job is not None:
                seat.job.fail(closing())
            raise
        finally:
            with suppress(ValueError):
                self._idle.remove(seat.begin)
            if seat.job is not None:
                self._running.discard(seat.job)

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

    def _occupy(self, begin: Callable[[Job], None], job: Job | None) -> None:
        """Have an image begun; None: the next one that comes."""
        if job is None:
            self._idle.append(begin)
        else:
            begin(job)

    def _begin(self, seat: _Seat, job: Job) -> None:
        seat.job, seat.begun_s = job, self._clock()
        self._running.add(job)
        try:
            seat.worker.begin(job.data, job.preprocessing, partial(self._ended, seat, job))
        except Exception as error:
            self._ended(seat, job, error)

    def _ended(self, seat: _Seat, job: Job, outcome: PreparedImage | Exception) -> None:
        """Answer one image, and give its worker the next one if it can go on."""
        seat.job = None
        self._running.discard(job)
        match outcome:
            case PreparedImage() as image:
                duration_s = self._clock() - seat.begun_s
                self._latency.observe(_OPERATION, cost=job.cost, duration_s=duration_s)
                self._events.decode_done(
                    duration_s=duration_s, size_bytes=len(job.data), pixel_count=image.width * image.height
                )
                job.succeed(image)
            case ImageError() as error:
                job.fail(error)
            case WorkerGone():
                seat.leave()
                self._give_back(job)
            case WorkerEnded() as error:
                seat.leave()
                self._lose_worker(job, error)
            case TimeoutError():
                seat.leave()
                self._events.decode_killed("timeout")
                job.take_too_long(self._time_limit_s)
            case error:
                # Whatever it is, one image has it, and the queue goes on.
                seat.leave()
                self._events.decode_killed("crash")
                job.fail(error)
        if not seat.over.done():
            self._occupy(seat.begin, self._take())

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
            if self._is_open:
                self._second_tries.append(job)
            else:
                # Those that waited have been told already.
                self._events.dropped("closed", "decode")
                job.fail(closing())

    def _call_one(self) -> None:
        """Call the seat that worked last: its memory is warm."""
        if self._idle and (job := self._take()):
            self._idle.pop()(job)

    async def _end_seats(self) -> None:
        for seat in self._seats:
            seat.cancel()
        for end in await asyncio.gather(*self._seats, return_exceptions=True):
            if isinstance(end, Exception):
                raise end


class _Seat:
    """Where one worker works."""

    def __init__(self, worker: Worker, begin: Callable[[_Seat, Job], None]) -> None:
        self.worker = worker
        self.begin = partial(begin, self)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the worker is to be replaced."""
        self.job: Job | None = None
        self.begun_s = 0.0

    def leave(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
