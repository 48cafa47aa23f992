"""Images that come in pieces: joined with their questions, bounded in bytes and in how long they stand still.

Knows no protobuf and no queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import assert_never

from phosphene.errors import DeadlineExpired, InputError, Overloaded
from service.queries import ExplainQuery, ImageBytes, ImageUpload
from service.stream_messages import Chunk, Fault, Question, StreamMessage

__all__ = ["UploadBudget", "whole_questions"]


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


async def whole_questions(
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
                case Chunk(item):
                    if upload is None or upload.question.item != item:
                        raise InputError(
                            f"a chunk came for item {item}, which is not the image that is being sent; announce it "
                            "with `explain` and `image.upload`, and send its chunks at once",
                            field="chunk",
                        )
                    upload.add(message.data)
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
            # The next one may be long in coming, and nobody counts what this one holds once it is read.
            del message
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
