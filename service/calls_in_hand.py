"""The calls that are being answered; a replica that leaves takes no more of them, and waits for these to end.

A stream may be open for hours with nothing to answer: it rests meanwhile, and nobody waits for a call that rests. Used
on the event loop only; knows no gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from phosphene.errors import Unavailable

__all__ = ["CallsInHand"]


class CallsInHand:
    """The books of the calls of one port."""

    def __init__(self) -> None:
        """There are none."""
        self._count = 0
        self._resting: set[object] = set()
        self._is_leaving = False
        self._has_changed = asyncio.Event()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a call until its answer is made; raises `Unavailable` once the replica leaves."""
        if self._is_leaving:
            raise Unavailable("the service is shutting down; try again, or ask another replica")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            self._has_changed.set()

    def rest(self, call: object) -> None:
        """A call has nothing to answer until its caller says more."""
        self._resting.add(call)
        self._has_changed.set()

    def wake(self, call: object) -> None:
        """It has, or it ends."""
        self._resting.discard(call)

    async def leave(self) -> None:
        """Take no more calls, and wait until all that are in hand are answered or rest."""
        self._is_leaving = True
        while self._count > len(self._resting):
            self._has_changed.clear()
            await self._has_changed.wait()
