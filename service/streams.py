"""Many questions on one call: answers each as soon as it is ready, and holds a bounded number of them.

Flow control: at most `window` questions are under way, fewer where their answers are large; the next message is read
only when there is room, so that gRPC holds the caller back. A question that fails ends with its own error and the
stream goes on, and so does an upload that stands still; a caller that breaks the order of messages ends the stream.
Knows no protobuf and no queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, assert_never

from phosphene.errors import InputError, Unavailable
from service.calls_in_hand import CallsInHand
from service.queries import ExplainQuery
from service.stream_messages import Answered, Fault, Question, StreamMessage
from service.stream_window import StreamWindow, UnreadBudget
from service.told_errors import forget_frames
from service.uploads import UploadBudget, whole_questions

__all__ = ["answer_stream"]

Reply = TypeVar("Reply")


async def answer_stream(
    messages: AsyncIterator[StreamMessage],
    answer: Callable[[ExplainQuery], Awaitable[Reply]],
    *,
    window: int,
    budget: UploadBudget,
    unread: UnreadBudget | None = None,
    calls: CallsInHand | None = None,
    caller: str = "",
    limit: Callable[[], Awaitable[None]] | None = None,
    size_of: Callable[[Reply], int] = lambda reply: 0,
    expected_bytes: Callable[[ExplainQuery], int] = lambda query: 0,
    on_failed: Callable[[int, Exception], None] = lambda item, error: None,
) -> AsyncGenerator[Answered[Reply], None]:
    """Answer a stream of questions, each exactly once, in the order in which they become ready.

    Args:
        messages: what the caller sends.
        answer: answers one question whose image is whole.
        window: most questions under way.
        budget: what unfinished uploads may hold.
        unread: what answers that are not read may hold, over all streams; None: there is no other stream.
        calls: told when nothing is under way and the caller says nothing; None: nobody wants to know.
        caller: whose stream it is.
        limit: raises for an item with which the caller asks too often, answered or at fault; None: no item is.
        size_of: bytes that a reply holds until its caller has read it; what it raises is the outcome in its place.
        expected_bytes: the same as far as the question tells.
        on_failed: told of an item whose answer failed, and of the error while it has its traceback; must not raise.

    Raises:
        InputError: a message out of order; what is under way is given up.
    """
    ready: asyncio.Queue[Answered[Reply] | None] = asyncio.Queue()
    under_way: dict[int, asyncio.Task[None]] = {}
    room = StreamWindow(window, budget=unread, caller=caller)
    idling = _Idling(room, calls if calls is not None else CallsInHand())

    async def settle(question: Question | Fault, kept_bytes: int) -> None:
        outcome: Reply | Exception
        size_bytes = 0
        try:
            if limit is not None:
                await limit()
            match question:
                case Fault(error=error):
                    forget_frames(error)
                    outcome = error
                case Question(query=query):
                    outcome = await answer(query)
                    size_bytes = size_of(outcome)
                case _:
                    assert_never(question)
        except Exception as error:
            on_failed(question.item, error)
            # It may wait long to be read, and they hold the image.
            forget_frames(error)
            outcome = error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # Something inside gave up: without an outcome the item would keep its place in the window for ever.
            outcome = Unavailable("the service gave this item up; ask it again")
        room.made(kept_bytes, size_bytes)
        ready.put_nowait(Answered(question.item, outcome, size_bytes))

    async def read() -> None:
        async with asyncio.TaskGroup() as answering, aclosing(whole_questions(messages, budget, caller)) as questions:
            idling.reading(True)
            async for question in questions:
                idling.reading(False)
                kept_bytes = await room.begin(expected_bytes(question.query) if isinstance(question, Question) else 0)
                if question.item in under_way:
                    raise InputError(
                        f"item {question.item} is asked again before its answer has come; number items apart",
                        field="item",
                    )
                under_way[question.item] = answering.create_task(settle(question, kept_bytes))
                # The next one may be long in coming, and nobody counts what this one holds once it is answered.
                del question
                idling.reading(True)
            idling.reading(False)

    reading = asyncio.create_task(read())
    reading.add_done_callback(_forget_cancellation)
    reading.add_done_callback(lambda _: ready.put_nowait(None))
    try:
        while (answered := await ready.get()) is not None:
            del under_way[answered.item]
            yield answered
            # Only now: a caller that does not read its answers is not read from either.
            room.read(answered.size_bytes)
            idling.tell()
        try:
            await reading
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    finally:
        idling.reading(False)
        reading.cancel()
        try:
            await asyncio.gather(reading, return_exceptions=True)
        finally:
            # gRPC may cancel this as well, and what its caller has left unread is nobody's any more.
            while not ready.empty():
                ready.get_nowait()
            room.close()


class _Idling:
    """Tells when a stream has nothing under way and waits for its caller."""

    def __init__(self, room: StreamWindow, calls: CallsInHand) -> None:
        self._room = room
        self._calls = calls
        self._is_reading = False

    def reading(self, is_reading: bool) -> None:
        self._is_reading = is_reading
        self.tell()

    def tell(self) -> None:
        if self._is_reading and self._room.is_empty:
            self._calls.rest(self)
        else:
            self._calls.wake(self)


def _is_cancelled() -> bool:
    """Whether the running task is to end. Its name would be in a frame of the error that it ends with."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _forget_cancellation(task: asyncio.Task[None]) -> None:
    """Where a task was cancelled, the frames of that hold the task, and a task group's hold the error itself."""
    try:
        task.exception()
    except asyncio.CancelledError as error:
        forget_frames(error)
