"""The decode pool: images wait in fair order for worker processes that turn them into pixels; knows no gRPC, no device.

A decoder is the part of the service that strangers' bytes reach first. Each runs in a process that can be killed: an
image that takes too long or crashes its decoder fails alone, and the worker is replaced. Work whose caller has gone or
whose deadline has passed is never begun.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from phosphene.errors import (
    DeadlineExpired,
    ImageError,
    ImageTooSlow,
    ImageUnreadable,
    Overloaded,
    SettingError,
    Unavailable,
)
from phosphene.image_headers import image_size
from phosphene.image_limits import ImageLimits, check_file_size
from phosphene.images import PreparedImage
from phosphene.preprocessing import Preprocessing
from service.batching.fair_queue import FairQueue
from service.batching.latency import LatencyModel, retry_after_s
from service.claims import Claim
from service.decoding.process import DecodeProcess, WorkerEnded, WorkerGone, open_decode_process

__all__ = ["DecodeEvents", "DecodePool"]

_OPERATION = "decode"


@runtime_checkable
class DecodeEvents(Protocol):
    """What an observer hears, on the event loop; must be quick and must not raise."""

    def decode_done(self, *, duration_s: float, size_bytes: int, pixel_count: int) -> None:
        """An image of this size was decoded, in this time at its worker."""

    def decode_killed(self, cause: Literal["timeout", "crash"]) -> None:
        """A worker was lost to an image."""

    def decode_depth_changed(self, depth: int) -> None:
        """The number of images that wait for a worker changed."""

    def dropped(self, cause: Literal["cancelled", "expired", "closed"], stage: Literal["decode"]) -> None:
        """An image left the queue before a worker had begun it."""


@dataclass(eq=False, kw_only=True)
class _Job:
    data: bytes
    preprocessing: Preprocessing
    claim: Claim
    cost: float
    """Megapixels, about."""
    answer: asyncio.Future[PreparedImage] = field(repr=False)

    def succeed(self, image: PreparedImage) -> None:
        if not self.answer.done():
            self.answer.set_result(image)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


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
        """
        self._worker_count = worker_count
        self._queue_limit = queue_limit
        self._time_limit_s = time_limit_s
        self._limits = limits
        self._clock = clock
        self._events = events
        self._queue: FairQueue[_Job] = FairQueue(bulk_share=bulk_share)
        self._latency = LatencyModel()
        self._running: set[_Job] = set()
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
        for job in self._queue.drain():
            self._events.dropped("closed", "decode")
            job.fail(_closing())
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
                crashed its decoder.
            Overloaded: the queue is full.
            DeadlineExpired: the deadline passed before a worker was free.
            Unavailable: the pool is closed, or no worker can be started any more.
        """
        if not self._is_open:
            raise _closing()
        check_file_size(len(data), self._limits)
        if len(self._queue) >= self._queue_limit:
            delay_s = retry_after_s(self.wait_s(claim))
            raise Overloaded(
                f"{len(self._queue)} images wait for a decode worker, the limit (PHOSPHENE_QUEUE_IMAGES); "
                f"try again in {delay_s:.2f} s",
                retry_after_s=delay_s,
            )
        job = _Job(
            data=data,
            preprocessing=preprocessing,
            claim=claim,
            cost=_cost(data),
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
                async with open_decode_process(self._limits, self._time_limit_s) as worker:
                    if not started.done():
                        started.set_result(None)
                    while (job := await self._next_job(worker.ended)) and await self._decode(worker, job):
                        pass
            except SettingError as error:
                if not started.done():
                    started.set_exception(error)
                    return
                await self._fail_one(error)

    async def _fail_one(self, error: SettingError) -> None:
        """Where a worker cannot be replaced, the next image pays for the next attempt, so that none waits for ever."""
        never = asyncio.get_running_loop().create_future()
        if job := await self._next_job(never):
            job.fail(Unavailable(f"{error}; until then ask another instance"))

    async def _next_job(self, ended: asyncio.Future[None]) -> _Job | None:
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

    def _take(self) -> _Job | None:
        """The next image that somebody still waits for."""
        while job := self._queue.take():
            self._events.decode_depth_changed(len(self._queue))
            deadline_s = job.claim.deadline_s
            if job.answer.done():
                self._events.dropped("cancelled", "decode")
            elif deadline_s is not None and self._clock() >= deadline_s:
                self._events.dropped("expired", "decode")
                job.fail(DeadlineExpired("the deadline passed before a decode worker was free; allow more time"))
            else:
                return job
        return None

    async def _decode(self, worker: DecodeProcess, job: _Job) -> bool:
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
            self._queue.put(job, claim=job.claim, cost=job.cost)
            self._events.decode_depth_changed(len(self._queue))
            self._call_one()
            return False
        except asyncio.CancelledError:
            job.fail(_closing())
            raise
        except Exception as error:
            # Whatever it is, one image has it, and the queue goes on.
            self._events.decode_killed("timeout" if isinstance(error, TimeoutError) else "crash")
            job.fail(self._verdict(error))
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

    def _verdict(self, error: Exception) -> Exception:
        """What the caller hears of an image that cost a worker."""
        match error:
            case TimeoutError():
                return ImageTooSlow(
                    f"image decodes for more than {self._time_limit_s:g} s, the limit (PHOSPHENE_DECODE_LIMIT_S); "
                    "scale it down, or save it anew, not progressive"
                )
            case WorkerEnded():
                return ImageUnreadable(
                    "image ends its decoder: it is damaged or needs too much memory; save it anew, smaller"
                )
            case _:
                return error

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


def _cost(data: bytes) -> float:
    """Megapixels; the bytes stand in where the file does not tell, and where they are more."""
    width, height = image_size(data) or (0, 0)
    return max(width * height, len(data)) / 1e6


def _closing() -> Unavailable:
    return Unavailable("the service is shutting down; ask another instance")
