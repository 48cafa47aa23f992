"""One ExplainImages after another until every image is answered, for asyncio. Its twin that waits is `image_stream`.

Tasks meet at one queue: one takes the next image when there is room for it, one sends (each file is read just before,
in a thread), one receives. The queue holds at most what is open, one image, and the ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, assert_never

import grpc

from phosphene.client.questions import Answer, OpenQuestions, Question, QuestionSource, Unsent
from phosphene.errors import PhospheneError
from phosphene.v1.streams_pb2 import ExplainImagesResponse

__all__ = ["explain_each"]


@dataclass(frozen=True)
class _Taken:
    """The next image."""

    image: QuestionSource


@dataclass(frozen=True)
class _NoMore:
    """The end of the images."""

    error: Exception | None
    """What they raised; None where there are no more."""


@dataclass(frozen=True)
class _Ended:
    """The end of the call."""

    failure: grpc.RpcError | None
    is_closed: bool = False
    """Whether this end cancelled it: the client was closed."""


_Event = ExplainImagesResponse | _Taken | _NoMore | Unsent | _Ended
_Inbox = asyncio.Queue[Any]


class _CallEnded(Exception):
    """A call ended on which something is open."""

    def __init__(self, end: _Ended) -> None:
        super().__init__()
        self.end = end


async def explain_each(
    images: Iterable[QuestionSource] | AsyncIterable[QuestionSource],
    questions: OpenQuestions,
    call: Callable[[], Any],
    *,
    timeout_s: float,
    wait: Callable[[float], Awaitable[bool]],
) -> AsyncIterator[Answer]:
    """Yield each image's answer as soon as it is there.

    Args:
        images: taken one by one, as there is room.
        questions: none is open yet.
        call: begins an ExplainImages call.
        timeout_s: longest silence of the service while it has something to answer.
        wait: waits that many seconds; true where the client was closed meanwhile.

    Raises:
        PhospheneError: a call failed, and a new one cannot mend it.
    """
    inbox: _Inbox = asyncio.Queue()
    async with _Source(images, inbox) as source:
        while True:
            async with _Call(call, questions, inbox) as stream:
                try:
                    async for answer in _converse(source, questions, stream, inbox, timeout_s=timeout_s):
                        yield answer
                    return
                except _CallEnded as ended:
                    end = ended.end
            if end.is_closed or await wait(questions.broke_off(questions.error_from(end.failure))):
                raise questions.closed()


async def _converse(
    source: _Source, questions: OpenQuestions, stream: _Call, inbox: _Inbox, *, timeout_s: float
) -> AsyncIterator[Answer]:
    """Ask and answer on one call until nothing is left; raises `_CallEnded` where it ends before."""
    stream.ask(*questions.all_open())
    quiet_since_s = time.monotonic()
    while questions or not source.is_exhausted:
        if not questions.is_heard:
            # Patience that the service asked for is not its silence.
            quiet_since_s = time.monotonic()
        stream.ask(*questions.due())
        if questions.has_room:
            source.take()
        left_s = quiet_since_s + timeout_s - time.monotonic() if questions else None
        if left_s is not None and left_s <= 0:
            raise questions.silence()
        event = await _next(inbox, left_s, questions.pause_s())
        if event is not None:
            answer = _settle(event, questions, stream, source)
            if answer is not None:
                yield answer
            quiet_since_s = time.monotonic()
    await stream.finish(timeout_s)


async def _next(inbox: _Inbox, left_s: float | None, pause_s: float | None) -> _Event | None:
    """What came next; None where nothing did in time."""
    waits_s = [wait_s for wait_s in (left_s, pause_s) if wait_s is not None]
    try:
        async with asyncio.timeout(min(waits_s, default=None)):
            event: _Event = await inbox.get()
            return event
    except TimeoutError:
        return None


def _settle(event: _Event, questions: OpenQuestions, stream: _Call, source: _Source) -> Answer | None:
    match event:
        case _Taken(image):
            source.has_taken()
            stream.ask(questions.ask(image))
            return None
        case _NoMore(error):
            source.is_exhausted = True
            if error is not None:
                raise error
            return None
        case _Ended():
            raise _CallEnded(event)
        case Unsent(position, error):
            return questions.fail(position, error)
        case ExplainImagesResponse():
            match questions.settle(event):
                case Question() as question:
                    stream.ask(question)
                    return None
                case answer:
                    return answer
        case _:
            assert_never(event)


class _Source:
    """The images; one is taken at a time, when it is asked for."""

    def __init__(self, images: Iterable[QuestionSource] | AsyncIterable[QuestionSource], inbox: _Inbox) -> None:
        self._images = _each(images)
        self._inbox = inbox
        self._taking: asyncio.Task[None] | None = None
        self.is_exhausted = False

    async def __aenter__(self) -> _Source:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
        await self._images.aclose()

    def take(self) -> None:
        if self._taking is None and not self.is_exhausted:
            self._taking = asyncio.create_task(self._take())

    def has_taken(self) -> None:
        self._taking = None

    async def _take(self) -> None:
        try:
            self._inbox.put_nowait(_Taken(await anext(self._images)))
        except StopAsyncIteration:
            self._inbox.put_nowait(_NoMore(None))
        except Exception as error:
            self._inbox.put_nowait(_NoMore(error))


async def _each(
    images: Iterable[QuestionSource] | AsyncIterable[QuestionSource],
) -> AsyncGenerator[QuestionSource, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


class _Call:
    """One call; it begins with the first question, and is cancelled when it is left."""

    def __init__(self, call: Callable[[], Any], questions: OpenQuestions, inbox: _Inbox) -> None:
        self._begin = call
        self._questions = questions
        self._inbox = inbox
        self._outbox: asyncio.Queue[Question | None] = asyncio.Queue()
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._has_crossed_end = False

    async def __aenter__(self) -> _Call:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ask(self, *questions: Question) -> None:
        for question in questions:
            self._outbox.put_nowait(question)
        if questions and self._call is None:
            self._call = self._begin()
            self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]

    async def finish(self, timeout_s: float) -> None:
        """Tell the service that all is said, and let it end the call."""
        self._outbox.put_nowait(None)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _send(self) -> None:
        try:
            while (question := await self._outbox.get()) is not None:
                messages = self._questions.messages(question)
                try:
                    message = await asyncio.to_thread(next, messages)
                except PhospheneError as error:
                    self._inbox.put_nowait(Unsent(question.position, error))
                    continue
                await self._call.write(message)
                for message in messages:
                    await self._call.write(message)
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # The call is over; what receives tells how it ended.
            self._has_crossed_end = isinstance(error, grpc.aio.AioRpcError)

    async def _receive(self) -> None:
        # Asked for before anything is sent: a write that crosses the end of the call replaces its status by one of
        # gRPC's own, INTERNAL. Where that is the first, why the call ended is not known, and it counts as broken.
        status = asyncio.gather(self._call.code(), self._call.details(), self._call.trailing_metadata())
        try:
            with suppress(grpc.aio.AioRpcError):
                async for response in self._call:
                    self._inbox.put_nowait(response)
            code, text, metadata = await status
        except asyncio.CancelledError:
            status.cancel()
            self._inbox.put_nowait(_Ended(None, is_closed=True))
            raise
        is_unknown = self._has_crossed_end and code is grpc.StatusCode.INTERNAL and not metadata
        failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, text, None)
        self._inbox.put_nowait(_Ended(None if is_unknown or code is grpc.StatusCode.OK else failure))
