"""Single flight: whoever asks for what is already being made waits for it, instead of making it again.

The work belongs to the party that waits, not to the one who began it: it goes on when its leader leaves, and is
cancelled when the last one has left. A failure is its leader's own (a deadline, a full queue): the others then make
another attempt, led by one of them, and whoever sees that fail as well works alone, so that nobody waits for a row of
strangers' failures. Work goes through its leader's lane: interactive callers follow interactive leaders only, or they
would wait as bulk does; bulk follows either. Knows no cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeAlias, TypeVar, assert_never

from service.claims import Lane
from service.told_errors import forget_frames

__all__ = ["SingleFlight"]

Value = TypeVar("Value")

_FOLLOW_LIMIT = 2
"""Flights of others that one caller sees fail before it works alone."""

_Key: TypeAlias = tuple[bytes, Lane]


@dataclass(eq=False)
class _Flight(Generic[Value]):
    key: _Key
    task: asyncio.Task[Value]
    party: list[asyncio.Future[None]] = field(default_factory=list)
    is_led: bool = True
    """Whether its leader is still there, who is told why it fails."""


class SingleFlight(Generic[Value]):
    """Work under way by name; an async context manager that cancels what is left of it."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._flights: dict[_Key, _Flight[Value]] = {}
        self._tasks: set[asyncio.Task[Value]] = set()

    async def __aenter__(self) -> Self:
        """Nothing to start."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel what is under way, and see it end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def __len__(self) -> int:
        """Works under way."""
        return len(self._flights)

    async def run(
        self,
        name: bytes,
        work: Callable[[], Coroutine[Any, Any, Value]],
        alone: Callable[[], Coroutine[Any, Any, Value]],
        *,
        lane: Lane = Lane.INTERACTIVE,
        follow: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> tuple[Value, bool]:
        """The value, and whether another's work gave it.

        Args:
            name: equal names are equal work.
            work: the work as the leader of a party does it; called at once; its coroutine is a task of its own.
            alone: the same for one caller who has given up on parties.
            lane: how urgent it is to this caller.
            follow: entered for as long as this caller waits for another's work.

        Raises:
            Exception: what this caller's own work or `follow` raised; never another's.
        """
        for _ in range(_FOLLOW_LIMIT):
            flight = self._to_follow(name, lane)
            if flight is None:
                return await self._lead(self._begin((name, lane), work)), False
            try:
                with follow():
                    await self._wait(flight)
                if not flight.task.cancelled() and flight.task.exception() is None:
                    return flight.task.result(), True
            finally:
                # Who leaves keeps the error that says so, which has this frame.
                del flight
        return await alone(), False

    def _to_follow(self, name: bytes, lane: Lane) -> _Flight[Value] | None:
        interactive = self._flights.get((name, Lane.INTERACTIVE))
        match lane:
            case Lane.INTERACTIVE:
                return interactive
            case Lane.BULK:
                return interactive or self._flights.get((name, Lane.BULK))
            case _:
                assert_never(lane)

    def _begin(self, key: _Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> _Flight[Value]:
        flight = _Flight(key, asyncio.create_task(work()))
        self._flights[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._end(flight, task))
        return flight

    async def _lead(self, flight: _Flight[Value]) -> Value:
        try:
            await self._wait(flight)
            return flight.task.result()
        except asyncio.CancelledError:
            flight.is_led = False
            _let_go(flight)
            raise
        finally:
            # Its result may be an error, which has this frame.
            del flight

    async def _wait(self, flight: _Flight[Value]) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flight.party.append(ended)
        try:
            await ended
        finally:
            flight.party.remove(ended)
            if not flight.party and not flight.task.done():
                self._forget(flight)
                flight.task.cancel()
            # As in `run`.
            del flight

    def _end(self, flight: _Flight[Value], task: asyncio.Task[Value]) -> None:
        self._forget(flight)
        self._tasks.discard(task)
        _let_go(flight)
        for ended in flight.party:
            if not ended.done():
                ended.set_result(None)

    def _forget(self, flight: _Flight[Value]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


def _let_go(flight: _Flight[Any]) -> None:
    """Free what a failure holds whose leader has gone: nobody else looks at it."""
    task = flight.task
    if not flight.is_led and task.done() and not task.cancelled() and (error := task.exception()) is not None:
        forget_frames(error)
