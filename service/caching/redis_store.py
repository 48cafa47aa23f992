"""Redis as the service sees it: questions with one short try, writes in the background, and words from other replicas.

Requests never connect and never find out whether Redis is back: a supervisor opens three connections (questions,
writes, words), proves them with a probe, and takes them down when one is lost or the circuit opens. While there are
none, asking costs nothing and gives `NotAsked`. Knows nothing of what is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias, runtime_checkable

from service.caching.circuit import Circuit, CircuitState
from service.caching.redis_link import Answer, Answered, LinkBounds, NotAsked, RedisLink
from service.caching.redis_wire import LinkLost, RedisAddress, RedisWire, ServerError
from service.observing.logs import log_event

__all__ = ["TOPIC_BYTES", "RedisBounds", "RedisStore", "StoreEvents", "Word"]

TOPIC_BYTES = 32
"""Length of a topic: the first bytes of every word."""
_PROBE = b"return {ARGV[1], 'well'}"
_PROBE_COUNT = 5
"""Most probes in a row; the fastest counts, for the first may have met a loop that was busy, or a cold path."""

Word: TypeAlias = asyncio.Future[bytes | None]
"""What another replica says of a topic; None: nothing will come, for Redis went away."""


@runtime_checkable
class StoreEvents(Protocol):
    """What an observer hears; called on the event loop, must be quick and must not raise."""

    def circuit_changed(self, state: str) -> None:
        """Whether Redis is asked: `closed` (yes), `open` (no), `half_open` (a probe is under way)."""


@dataclass(frozen=True, kw_only=True)
class RedisBounds:
    """How long Redis may take, and what it is given when it takes longer."""

    patience_s: float = 0.045
    """Seconds that a request waits for an answer: with the 5 ms of its rate limit, 50 ms for all that it asks. Half of
    it makes a slow answer; where most are slow, Redis is as good as away."""
    write_patience_s: float = 1.0
    """Seconds that a write in the background may take; no request waits for it."""
    connect_s: float = 1.0
    """Seconds in which all connections must be open and the probe sent."""
    failure_limit: int = 5
    """Failures in a row that open the circuit."""
    probe_interval_s: float = 5.0
    """Seconds between probes while Redis is away; varied by 10 %, so that replicas do not probe together."""
    write_limit_bytes: int = 32 * 2**20
    """Most bytes of writes that wait in the background; one more is given up at once."""


@dataclass(frozen=True, eq=False)
class _Session:
    asks: RedisLink
    writes: RedisLink
    words: RedisWire


class RedisStore:
    """One Redis for the whole process; an async context manager that owns its connections."""

    def __init__(self, url: str, *, events: StoreEvents, bounds: RedisBounds | None = None) -> None:
        """Read the URL; nothing is opened before the context is entered.

        Args:
            url: see `RedisAddress`.
            events: told of the circuit.
            bounds: how long things may take; None is the service's own.

        Raises:
            SettingError: no URL of a Redis.
        """
        self._bounds = bounds or RedisBounds()
        self._address = RedisAddress(url, connect_s=self._bounds.connect_s)
        self._events = events
        self._circuit = Circuit(failure_limit=self._bounds.failure_limit, on_change=self._circuit_changed)
        self._session: _Session | None = None
        self._words: dict[bytes, Word] = {}
        self._has_opened = asyncio.Event()
        self._was_probed = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._was_well: bool | None = None
        self.reason = ""
        """Why Redis is not asked; empty while it is."""
        self._is_closing = False
        self.name = f"phosphene:replica:{secrets.token_hex(16)}".encode()
        """The channel on which this process hears words; nobody else's."""

    async def __aenter__(self) -> Self:
        """Start the supervisor and await its first probe, well or not."""
        self._supervisor = asyncio.create_task(self._supervise())
        await self._was_probed.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give writes under way the patience of one, then close everything."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.write_patience_s):
                await self.written()
        # A task group that ends by an error at this very moment swallows the cancellation; hence the flag beside it.
        self._is_closing = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait((self._supervisor,))

    @property
    def state(self) -> CircuitState:
        """Whether Redis is asked."""
        return self._circuit.state

    def __str__(self) -> str:
        """Where Redis is, without the password."""
        return str(self._address)

    def ask(self, script: bytes, *, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> asyncio.Future[Answer]:
        """Ask once; the future resolves within `patience_s`, and the circuit hears of it whoever still waits.

        Args:
            script: see `RedisLink.ask`.
            keys: KEYS of the script.
            arguments: ARGV of the script from 2 on.
        """
        if self._session is None or not self._circuit.is_closed:
            return _away()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        asked = self._session.asks.ask(script, keys=keys, arguments=arguments)
        asked.add_done_callback(lambda asked: self._heard(asked.result(), answer))
        return answer

    def tell(self, script: bytes, *, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> asyncio.Future[Answer]:
        """Write in the background, behind a bounded queue; the future may be left alone.

        Args:
            script: see `RedisLink.ask`.
            keys: KEYS of the script.
            arguments: ARGV of the script from 2 on.
        """
        if self._session is not None:
            return self._session.writes.ask(script, keys=keys, arguments=arguments)
        return _away()

    async def written(self) -> None:
        """Return when no write is under way."""
        if self._session is not None:
            await self._session.writes.quiet()

    @contextlib.contextmanager
    def word(self, topic: bytes) -> Iterator[Word]:
        """Listen for the next word on a topic; enter it before asking for what may make another replica speak.

        Args:
            topic: `TOPIC_BYTES` long; who listened to it before hears nothing more.
        """
        word: Word = asyncio.get_running_loop().create_future()
        self._words[topic] = word
        try:
            yield word
        finally:
            if self._words.get(topic) is word:
                del self._words[topic]

    def _heard(self, said: Answer, answer: asyncio.Future[Answer]) -> None:
        match said:
            case Answered():
                self._circuit.succeeded()
            case NotAsked(is_failure=False):
                pass
            case _:
                self._circuit.failed()
        if not answer.done():
            answer.set_result(said)

    async def _supervise(self) -> None:
        """Keep a session; one that has lived for a while is replaced at once, any other after a pause."""
        loop = asyncio.get_running_loop()
        while True:
            begun_s = loop.time()
            reason, was_well = await self._live_once()
            if self._is_closing:
                return
            self._tell_operators(is_well=False, reason=reason)
            is_at_once = was_well and not self._has_opened.is_set()
            if not is_at_once or loop.time() - begun_s < self._bounds.probe_interval_s:
                self._circuit.probed(is_well=False)
                self._was_probed.set()
                await self._pause(loop)

    async def _live_once(self) -> tuple[str, bool]:
        """Probe, and serve until that ends; returns why it ended and whether it had begun."""
        self._circuit.probing()
        self._has_opened.clear()
        reason, was_well = "", False
        async with contextlib.AsyncExitStack() as closing:
            try:
                async with asyncio.timeout(self._bounds.connect_s):
                    session = await self._open(closing)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(session.asks.run())
                    tasks.create_task(session.writes.run())
                    tasks.create_task(self._listen(session.words))
                    await self._probe(session.asks)
                    was_well = True
                    await self._serve(session)
            except* (LinkLost, TimeoutError) as group:
                reason = _first_text(group)
            except* Exception as group:
                # A defect of ours; requests go on without Redis either way.
                reason = _first_text(group)
                log_event("the link to redis failed", level=logging.ERROR, error=group)
            finally:
                self._session = None
                self._wake_listeners()
        return reason, was_well

    async def _open(self, closing: contextlib.AsyncExitStack) -> _Session:
        asks, writes, words = wires = [self._address.wire() for _ in range(3)]
        for wire in wires:
            closing.callback(wire.abort)
            await wire.open()
        await words.send(words.pack("SUBSCRIBE", self.name))
        if isinstance(answer := await words.receive(), ServerError):
            raise LinkLost(answer.reason)
        bounds = self._bounds
        return _Session(
            asks=RedisLink(
                asks,
                bounds=LinkBounds(patience_s=bounds.patience_s),
                on_overdue=self._wake_listeners,
                on_pace=lambda is_slow: self._circuit.paced(is_slow=is_slow),
            ),
            writes=RedisLink(
                writes,
                bounds=LinkBounds(patience_s=bounds.write_patience_s, limit_bytes=bounds.write_limit_bytes),
            ),
            words=words,
        )

    async def _probe(self, asks: RedisLink) -> None:
        slow_s = self._bounds.patience_s / 2
        fastest_s = math.inf
        for _ in range(_PROBE_COUNT):
            answer = await asks.ask(_PROBE, keys=(), arguments=())
            if not isinstance(answer, Answered) or answer.words != [b"well"]:
                raise LinkLost(f"the probe failed: {getattr(answer, 'reason', answer)}")
            fastest_s = min(fastest_s, answer.after_s)
            if fastest_s <= slow_s:
                return
        raise LinkLost(f"it answers in {1000 * fastest_s:.0f} ms, and is of use within {1000 * slow_s:g} ms")

    async def _serve(self, session: _Session) -> None:
        self._session = session
        self._circuit.probed(is_well=True)
        self._was_probed.set()
        self._tell_operators(is_well=True, reason="")
        await self._has_opened.wait()
        raise LinkLost(self._circuit.reason)

    async def _listen(self, words: RedisWire) -> None:
        while True:
            message = await words.receive()
            if not isinstance(message, list) or message[:2] != [b"message", self.name] or len(message) != 3:
                raise LinkLost("a word that is none")
            data: bytes = message[2]
            word = self._words.get(data[:TOPIC_BYTES])
            if word is not None and not word.done():
                word.set_result(data[TOPIC_BYTES:])

    def _wake_listeners(self) -> None:
        for word in self._words.values():
            if not word.done():
                word.set_result(None)

    async def _pause(self, loop: asyncio.AbstractEventLoop) -> None:
        is_due = asyncio.Event()
        timer = loop.call_later(self._bounds.probe_interval_s * random.uniform(0.9, 1.1), is_due.set)
        try:
            await is_due.wait()
        finally:
            timer.cancel()

    def _circuit_changed(self, state: CircuitState) -> None:
        if state is CircuitState.OPEN:
            self._has_opened.set()
        self._events.circuit_changed(state.value)

    def _tell_operators(self, *, is_well: bool, reason: str) -> None:
        """One line when Redis goes and one when it comes, none for every probe between."""
        self.reason = reason
        if is_well is not self._was_well:
            self._was_well = is_well
            if is_well:
                log_event("redis is used", redis=str(self))
            else:
                log_event("redis is away", level=logging.WARNING, redis=str(self), reason=reason)


def _away() -> asyncio.Future[Answer]:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    answer.set_result(NotAsked("Redis is away", is_failure=False))
    return answer


def _first_text(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
