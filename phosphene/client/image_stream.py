"""One ExplainImages after another until every image is answered, for a caller that waits.

Three threads meet at two queues: the caller's takes images and gives answers, gRPC's own sends (and reads each file
just before it does), and one of this module's receives. Both queues hold at most what is open. The twin for asyncio is
`image_stream_async`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, assert_never

import grpc

from phosphene.client.questions import Answer, OpenQuestions, Question, QuestionSource, Unsent
from phosphene.errors import PhospheneError
from phosphene.v1.streams_pb2 import ExplainImagesRequest, ExplainImagesResponse

__all__ = ["explain_each"]


@dataclass(frozen=True)
class _Ended:
    """The end of the call."""

    error: PhospheneError
    """What it means for what is open."""


_Event = ExplainImagesResponse | Unsent | _Ended


class _CallEnded(Exception):
    """The service ended a call on which something is open."""

    def __init__(self, error: PhospheneError) -> None:
        super().__init__()
        self.error = error


def explain_each(
    images: Iterable[QuestionSource],
    questions: OpenQuestions,
    call: Callable[[Iterator[ExplainImagesRequest]], Any],
    *,
    timeout_s: float,
    wait: Callable[[float], bool],
) -> Generator[Answer, None, None]:
    """Yield each image's answer as soon as it is there.

    Args:
        images: taken one by one, in the caller's thread, as there is room.
        questions: none is open yet.
        call: begins an ExplainImages call that sends these messages.
        timeout_s: longest silence of the service while it has something to answer.
        wait: waits that many seconds; true where the client was closed meanwhile.

    Raises:
        PhospheneError: a call failed, and a new one cannot mend it.
    """
    source = iter(images)
    while True:
        with _Call(call, questions) as stream:
            try:
                yield from _converse(source, questions, stream, timeout_s=timeout_s)
                return
            except _CallEnded as ended:
                error = ended.error
        delay_s = questions.broke_off(error)
        if wait(delay_s):
            raise questions.closed()


def _converse(
    source: Iterator[QuestionSource], questions: OpenQuestions, stream: _Call, *, timeout_s: float
) -> Generator[Answer, None, None]:
    """Ask and answer on one call until nothing is left; raises `_CallEnded` where it ends before."""
    stream.ask(*questions.all_open())
    has_more = True
    quiet_since_s = time.monotonic()
    while True:
        if not questions.is_heard:
            # Patience that the service asked for is not its silence.
            quiet_since_s = time.monotonic()
        stream.ask(*questions.due())
        event = stream.take(0.0)
        if event is None and has_more and questions.has_room:
            try:
                stream.ask(questions.ask(next(source)))
            except StopIteration:
                has_more = False
            quiet_since_s = time.monotonic()
            continue
        if event is None and not questions:
            stream.finish(timeout_s)
            return
        if event is None:
            left_s = quiet_since_s + timeout_s - time.monotonic()
            if left_s <= 0:
                raise questions.silence()
            pause_s = questions.pause_s()
            event = stream.take(left_s if pause_s is None else min(left_s, pause_s))
        if event is not None:
            answer = _settle(event, questions, stream)
            if answer is not None:
                yield answer
            quiet_since_s = time.monotonic()


def _settle(event: _Event, questions: OpenQuestions, stream: _Call) -> Answer | None:
    match event:
        case _Ended(error):
            raise _CallEnded(error)
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


class _Call:
    """One call; it begins with the first question, and is cancelled when it is left."""

    def __init__(self, call: Callable[[Iterator[ExplainImagesRequest]], Any], questions: OpenQuestions) -> None:
        self._begin = call
        self._questions = questions
        self._outbox: SimpleQueue[Question | None] = SimpleQueue()
        self._inbox: SimpleQueue[_Event] = SimpleQueue()
        self._call: Any = None
        self._reader = Thread(target=self._read, name="phosphene-answers", daemon=True)

    def __enter__(self) -> _Call:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outbox.put(None)
        if self._call is not None:
            self._call.cancel()
            self._reader.join()
            self._call = None

    def ask(self, *questions: Question) -> None:
        for question in questions:
            self._outbox.put(question)
        if questions and self._call is None:
            self._call = self._begin(self._messages())
            self._reader.start()

    def finish(self, timeout_s: float) -> None:
        """Tell the service that all is said, and let it end the call."""
        self._outbox.put(None)
        if self._call is not None:
            self._reader.join(timeout_s)

    def take(self, timeout_s: float) -> _Event | None:
        """What came next; None where nothing did."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except Empty:
            return None

    def _messages(self) -> Iterator[ExplainImagesRequest]:
        while (question := self._outbox.get()) is not None:
            try:
                yield from self._questions.messages(question)
            except PhospheneError as error:
                self._inbox.put(Unsent(question.position, error))

    def _read(self) -> None:
        error = self._questions.error_from(None)
        try:
            for response in self._call:
                self._inbox.put(response)
        except grpc.RpcError as failure:
            # What gRPC raises is the call itself. With its frames it would be a cycle that only the last collection
            # of an ending process frees, and freeing a call takes a lock that a thread of gRPC may have died with.
            error = self._questions.error_from(failure.with_traceback(None))
        self._inbox.put(_Ended(error))
