"""One connection to Redis on which questions queue behind each other.

Questions are Lua scripts, sent as they come and answered in their order, so that a question whose asker has left needs
no new connection: its answer is read and dropped. Each answer repeats the number of its question; one that does not
means that the stream is out of step, and ends the link. Nothing is sent twice.

Patience is counted from the oldest unanswered question, because nothing behind it can be answered before it: once that
one is overdue, all that wait are told so, and nobody else is let in until Redis has caught up. A link that stays silent
for longer is lost. Beside that the link tells its pace: one question at a time is looked at when half of the patience
is over. Knows nothing of caches, rates and circuits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from service.caching.redis_wire import LinkLost, RedisWire, ServerError

__all__ = ["Answer", "Answered", "LinkBounds", "NotAsked", "RedisLink", "Unanswered"]

_SECOND_LOOK_S = 0.002
"""Patience ends with a second look this long after the first, and so does a question's pace: a loop that was itself
held up reads the answer between the two."""


@dataclass(frozen=True)
class Answered:
    """What the script returned, without the number that every script returns first."""

    words: Sequence[Any]
    after_s: float = field(default=0.0, compare=False)
    """Seconds from the question to its answer."""


@dataclass(frozen=True)
class Unanswered:
    """Redis gave an error, or nothing in time."""

    reason: str


@dataclass(frozen=True)
class NotAsked:
    """The question was not sent."""

    reason: str
    is_failure: bool
    """Whether Redis is at fault, rather than the bound on what waits here."""


Answer: TypeAlias = Answered | Unanswered | NotAsked


@dataclass(frozen=True, kw_only=True)
class LinkBounds:
    """How long and how much may wait on one link."""

    patience_s: float
    """Seconds for which the oldest question may stay unanswered before all that wait are told that it is overdue."""
    lost_s: float = 1.0
    """Seconds of silence after that until the link counts as lost."""
    question_limit: int = 1024
    """Most questions that wait for their answers."""
    limit_bytes: int = 16 * 2**20
    """Most bytes of questions that wait for their answers."""

    @property
    def slow_s(self) -> float:
        """Seconds after which an answer is a slow one: half of the patience."""
        return self.patience_s / 2


@dataclass(eq=False, slots=True)
class _Question:
    number: int
    size_bytes: int
    asked_s: float
    answer: asyncio.Future[Answer]


class RedisLink:
    """Questions in order over one open connection; `run` serves them until the link is lost."""

    def __init__(
        self,
        wire: RedisWire,
        *,
        bounds: LinkBounds,
        on_overdue: Callable[[], None] = lambda: None,
        on_pace: Callable[[bool], None] | None = None,
    ) -> None:
        """Take over a connection.

        Args:
            wire: open, and nobody else's.
            bounds: how long and how much may wait.
            on_overdue: told when the oldest question is overdue.
            on_pace: told of one question after another, the next one sent after each verdict, whether it was still
                unanswered `slow_s` after it was sent; None: nobody wants to know.
        """
        self._wire = wire
        self._bounds = bounds
        self._on_overdue = on_overdue
        self._on_pace = on_pace
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Question] = deque()
        self._waiting_bytes = 0
        self._outgoing: list[bytes] = []
        self._has_outgoing = asyncio.Event()
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()
        self._is_silent = asyncio.Event()
        self._last_number = 0
        self._overdue_number = 0
        self._suspect_number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pace_timer: asyncio.TimerHandle | None = None
        self._is_open = True

    @property
    def is_overdue(self) -> bool:
        """The oldest question is overdue: asking now would be in vain."""
        return bool(self._waiting) and self._waiting[0].number <= self._overdue_number

    def ask(self, script: bytes, *, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> asyncio.Future[Answer]:
        """Ask; the future always resolves, and cancelling it withdraws interest alone.

        Args:
            script: Lua that returns a list whose first item is ARGV[1], the number of the question.
            keys: KEYS of the script.
            arguments: ARGV of the script from 2 on.
        """
        answer: asyncio.Future[Answer] = self._loop.create_future()
        if not self._is_open or self.is_overdue:
            reason = "an earlier question is overdue" if self._is_open else "the connection is lost"
            answer.set_result(NotAsked(reason, is_failure=True))
            return answer
        number = self._last_number + 1
        packed = self._wire.pack("EVAL", script, len(keys), *keys, number, *arguments)
        size_bytes = sum(map(len, packed))
        if (
            len(self._waiting) >= self._bounds.question_limit
            or self._waiting_bytes + size_bytes > self._bounds.limit_bytes
        ):
            answer.set_result(NotAsked("too much waits for Redis already", is_failure=False))
            return answer
        self._last_number = number
        self._waiting.append(_Question(number, size_bytes, self._loop.time(), answer))
        self._waiting_bytes += size_bytes
        self._outgoing += packed
        self._has_outgoing.set()
        self._is_quiet.clear()
        look_s = self._waiting[-1].asked_s + self._bounds.patience_s - _SECOND_LOOK_S
        # After one that was overdue the next look may be far off: it was to find out whether the link is lost.
        if self._timer is None or self._timer.when() > look_s:
            self._look_at(look_s)
        return answer

    async def quiet(self) -> None:
        """Return when nothing waits for an answer."""
        await self._is_quiet.wait()

    async def run(self) -> None:
        """Serve until the link is lost or the task is cancelled; either way nobody waits afterwards.

        Raises:
            ExceptionGroup: of `LinkLost`: the connection is of no use any more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send())
                tasks.create_task(self._receive())
                tasks.create_task(self._end_when_silent())
        finally:
            self._is_open = False
            for timer in (self._timer, self._pace_timer):
                if timer is not None:
                    timer.cancel()
            while self._waiting:
                self._resolve(self._waiting[0], Unanswered("the connection was lost"))
                self._pop()

    async def _send(self) -> None:
        while True:
            await self._has_outgoing.wait()
            self._has_outgoing.clear()
            outgoing, self._outgoing = self._outgoing, []
            number = self._last_number
            await self._wire.send(outgoing)
            if self._on_pace is not None and self._pace_timer is None:
                # Counted from here: what our own loop took to send it is not Redis's pace.
                self._pace_timer = self._loop.call_later(self._bounds.slow_s, self._look_at_pace, number, False)

    async def _receive(self) -> None:
        while True:
            words = await self._wire.receive()
            if not self._waiting:
                raise LinkLost("an answer without a question")
            oldest = self._waiting[0]
            answer: Answer
            if isinstance(words, ServerError):
                answer = Unanswered(words.reason)
            elif isinstance(words, list) and words[:1] == [b"%d" % oldest.number]:
                answer = Answered(words[1:], self._loop.time() - oldest.asked_s)
            else:
                raise LinkLost("an answer to another question than the oldest one")
            self._resolve(oldest, answer)
            self._pop()

    async def _end_when_silent(self) -> None:
        await self._is_silent.wait()
        raise LinkLost(f"no word for {self._bounds.patience_s + self._bounds.lost_s:g} s")

    def _pop(self) -> None:
        self._waiting_bytes -= self._waiting.popleft().size_bytes
        if not self._waiting:
            self._is_quiet.set()

    @staticmethod
    def _resolve(question: _Question, answer: Answer) -> None:
        if not question.answer.done():
            question.answer.set_result(answer)

    def _look_at_pace(self, number: int, is_second_look: bool) -> None:
        """Whether one question was answered at a useful pace."""
        is_waiting = bool(self._waiting) and self._waiting[0].number <= number
        if is_waiting and not is_second_look:
            self._pace_timer = self._loop.call_later(_SECOND_LOOK_S, self._look_at_pace, number, True)
            return
        self._pace_timer = None
        if self._on_pace is not None:
            self._on_pace(is_waiting)

    def _look_at(self, look_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(look_s, self._look)

    def _look(self) -> None:
        """Whether the oldest question is overdue; the one timer of the link."""
        self._timer = None
        if not self._waiting:
            return
        oldest = self._waiting[0]
        now_s = self._loop.time()
        left_s = oldest.asked_s + self._bounds.patience_s - _SECOND_LOOK_S - now_s
        if left_s <= 0:
            left_s = self._late(oldest, -left_s)
        self._look_at(now_s + left_s)

    def _late(self, oldest: _Question, late_s: float) -> float:
        """What to do about a late answer; returns the seconds until the next look."""
        if oldest.number <= self._overdue_number:
            if late_s >= self._bounds.lost_s:
                self._is_silent.set()
            return self._bounds.lost_s
        if oldest.number != self._suspect_number:
            self._suspect_number = oldest.number
            return _SECOND_LOOK_S
        self._overdue_number = self._last_number
        overdue = Unanswered(f"no answer within {self._bounds.patience_s:g} s")
        for question in self._waiting:
            self._resolve(question, overdue)
        self._on_overdue()
        return max(self._bounds.lost_s - late_s, _SECOND_LOOK_S)
