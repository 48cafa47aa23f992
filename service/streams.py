"""Many questions on one call: answers each as soon as it is ready, holds a bounded number, joins uploads in pieces.

Flow control: at most `window` questions are under way, fewer where their answers are large; the next message is read
only when there is room, so that gRPC holds the caller back. A question that fails ends with its own error and the
stream goes on, and so does an upload that stands still; a caller that breaks the order of messages ends the stream.
Knows no protobuf and no queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, assert_never

from phosphene.errors import DeadlineExpired, InputError, Overloaded, PhospheneError, Unavailable
from service.calls_in_hand import CallsInHand
from service.queries import ExplainQuery, ImageBytes, ImageUpload
from service.stream_window import StreamWindow, UnreadBudget
from service.told_errors import forget_frames

__all__ = ["Answered", "Chunk", "Fault", "Question", "StreamMessage", "UploadBudget", "answer_stream"]

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Question:
    """A question; its image may follow in chunks."""

    item: int
    query: ExplainQuery


@dataclass(frozen=True)
class Chunk:
    """A piece of an image."""

    item: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Fault:
    """A message that asks nothing that could be answered."""

    item: int
    error: PhospheneError
    upload_bytes: int = 0
    """Bytes of an image that follows all the same, in chunks that are read and kept nowhere."""


StreamMessage = Question | Chunk | Fault


@dataclass(frozen=True)
class Answered(Generic[Reply]):
    """What became of one item."""

    item: int
    outcome: Reply | Exception
    """The reply, or why there is none; then its frames are forgotten."""
    size_bytes: int = 0
    """What the reply holds."""


class UploadBudget:
    """Bounds the bytes of images that have come in part, over all streams, and how long they may stand still.

    No caller keeps the others out.
    """

    def __init__(self, limit_bytes: int, *, idle_s: float, clock: Callable[[], float]) -> None:
        """Allow at most `limit_bytes`, and one caller half of them, but for a single image; a lone one may have more.

        Args:
            limit_bytes: over all streams.
            idle_s: seconds after which an upload that nothing comes of is dropped.
            clock: monotonic seconds.
        """
        self._limit_bytes = limit_bytes
        self.idle_s = idle_s
        """Seconds after which an upload that nothing comes of is dropped."""
        self.clock = clock
        """Monotonic seconds."""
        self._held_by: Counter[str] = Counter()
        self.held_bytes = 0
        """Bytes that unfinished uploads hold now."""

    def take(self, size_bytes: int, *, caller: str, upload_bytes: int) -> bool:
        """Hold that much more; False where it does not fit.

        Args:
            size_bytes: how much more.
            caller: for whom.
            upload_bytes: what the same image holds already.
        """
        own_bytes = self._held_by[caller]
        if self.held_bytes == upload_bytes:
            # Nothing else is in hand: what one image may have is the bound of images.
            return self._hold(size_bytes, caller)
        is_only_image = own_bytes == upload_bytes
        if self.held_bytes + size_bytes > self._limit_bytes:
            return False
        if not is_only_image and own_bytes + size_bytes > self._limit_bytes // 2:
            return False
        return self._hold(size_bytes, caller)

    def give_back(self, size_bytes: int, *, caller: str) -> None:
        """Hold that much less."""
        self.held_bytes -= size_bytes
        self._held_by[caller] -= size_bytes
        if not self._held_by[caller]:
            del self._held_by[caller]

    def _hold(self, size_bytes: int, caller: str) -> bool:
        self.held_bytes += size_bytes
        self._held_by[caller] += size_bytes
        return True


async def answer_stream(
    messages: AsyncIterator[StreamMessage],
    answer: Callable[[ExplainQuery], Awaitable[Reply]],
    *,
    window: int,
    budget: UploadBudget,
    unread: UnreadBudget | None = None,
    calls: CallsInHand | None = None,
    caller: str = "",
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
        match question:
            case Fault(error=error):
                forget_frames(error)
                outcome = error
            case Question(query=query):
                try:
                    outcome = await answer(query)
                    size_bytes = size_of(outcome)
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
            case _:
                assert_never(question)
        room.made(kept_bytes, size_bytes)
        ready.put_nowait(Answered(question.item, outcome, size_bytes))

    async def read() -> None:
        async with asyncio.TaskGroup() as answering, aclosing(_whole(messages, budget, caller)) as questions:
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


async def _whole(
    messages: AsyncIterator[StreamMessage], budget: UploadBudget, caller: str
) -> AsyncGenerator[Question | Fault, None]:
    """Questions with their images joined; raises `InputError` for a message out of order."""
    upload: _Upload | None = None
    reader = _Reader(messages)
    try:
        while True:
            if upload is not None and upload.is_due and not await reader.comes_within(upload.left_s):
                if upload.left_s <= 0:
                    yield upload.drop()
                continue
            message = await reader.next()
            match message:
                case None:
                    break
                case Chunk(item, data):
                    if upload is None or upload.question.item != item:
                        raise InputError(
                            f"a chunk came for item {item}, which is not the image that is being sent; announce it "
                            "with `explain` and `image.upload`, and send its chunks at once",
                            field="chunk",
                        )
                    upload.add(data)
                    if upload.is_whole:
                        if upload.is_due:
                            yield upload.finish()
                        upload = None
                case Question() | Fault() if upload is not None and upload.is_due:
                    raise InputError(
                        f"item {message.item} came before item {upload.question.item} was sent to its end; its next "
                        f"{upload.missing_bytes} bytes are due first",
                        field="chunk",
                    )
                case Question(_, ExplainQuery(image=ImageUpload(size_bytes=size_bytes))):
                    upload = _Upload(message, size_bytes, budget, caller)
                case Fault(_, _, upload_bytes) if upload_bytes:
                    upload = _Upload(message, upload_bytes, budget, caller)
                    upload.is_due = False
                    yield message
                case Question() | Fault():
                    yield message
                case _:
                    assert_never(message)
        if upload is not None and upload.is_due:
            raise InputError(
                f"the stream ended {upload.missing_bytes} bytes before the end of item {upload.question.item}; "
                "send all that `image.upload` announces",
                field="chunk",
            )
    finally:
        if upload is not None:
            upload.let_go()
        await reader.close()


class _Reader:
    """Messages, one at a time; waiting for one can be given up, and the message comes all the same."""

    def __init__(self, messages: AsyncIterator[StreamMessage]) -> None:
        self._messages = messages
        self._coming: asyncio.Task[StreamMessage | None] | None = None

    async def next(self) -> StreamMessage | None:
        """The next message; None at the end."""
        if self._coming is None:
            # A task for each message would cost more than most messages do.
            return await self._read()
        message, self._coming = await self._coming, None
        return message

    async def comes_within(self, limit_s: float) -> bool:
        """Wait for the next message, or the end, so long at most; tells whether it is there."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._read())
        await asyncio.wait((self._coming,), timeout=max(limit_s, 0.0))
        return self._coming.done()

    async def close(self) -> None:
        """Wait for nothing any more."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)

    async def _read(self) -> StreamMessage | None:
        return await anext(self._messages, None)


class _Upload:
    """One image that comes in pieces; one that does not fit or was dropped is read to its end and kept nowhere."""

    def __init__(self, question: Question | Fault, size_bytes: int, budget: UploadBudget, caller: str) -> None:
        self.question = question
        self._size_bytes = size_bytes
        self._budget = budget
        self._caller = caller
        # One, and not a list: small pieces would hold many times what they count.
        self._data = bytearray()
        self._held_bytes = 0
        self._moved_s = budget.clock()
        self.missing_bytes = size_bytes
        self.is_due = True
        """Whether its question is to be answered yet: not once it was dropped."""
        self._fits = isinstance(question, Question)

    @property
    def is_whole(self) -> bool:
        return self.missing_bytes == 0

    @property
    def left_s(self) -> float:
        """Seconds that it may stand still from now."""
        return self._moved_s + self._budget.idle_s - self._budget.clock()

    def add(self, data: bytes) -> None:
        if not 1 <= len(data) <= self.missing_bytes:
            raise InputError(
                f"a chunk of item {self.question.item} has {len(data)} bytes; {self.missing_bytes} of "
                f"{self._size_bytes} are still due",
                field="chunk",
            )
        self.missing_bytes -= len(data)
        self._moved_s = self._budget.clock()
        if self._fits and self._budget.take(len(data), caller=self._caller, upload_bytes=self._held_bytes):
            self._data += data
            self._held_bytes += len(data)
        elif self._fits:
            self.let_go()
            self._fits = False

    def finish(self) -> Question | Fault:
        """The question with its image, or what is wrong with it."""
        data = bytes(self._data)
        self.let_go()
        if not self._fits:
            error = Overloaded(
                "unfinished uploads hold as many bytes as they may (PHOSPHENE_QUEUE_BYTES); try again in 1 s",
                retry_after_s=1.0,
            )
            return Fault(self.question.item, error)
        assert isinstance(self.question, Question), "a fault is answered when it comes"
        return replace(self.question, query=replace(self.question.query, image=ImageBytes(data)))

    def drop(self) -> Question | Fault:
        """What is wrong with its question, which is answered now; what it held is given back."""
        was_kept, self._fits, self.is_due = self._fits, False, False
        if not was_kept:
            return self.finish()
        self.let_go()
        error = DeadlineExpired(
            f"no chunk of item {self.question.item} came for {self._budget.idle_s:g} s, the limit "
            f"(PHOSPHENE_UPLOAD_IDLE_S), and {self.missing_bytes} of {self._size_bytes} bytes are still due; ask it "
            "again and send its chunks at once"
        )
        return Fault(self.question.item, error)

    def let_go(self) -> None:
        if self._held_bytes:
            self._budget.give_back(self._held_bytes, caller=self._caller)
        self._held_bytes = 0
        self._data = bytearray()
