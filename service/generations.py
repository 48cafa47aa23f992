"""The generation that answers, and the switch to another one while requests are under way.

A generation is loaded and warmed beside the one that answers, and takes over between two requests: each request holds
the one that it began with until its answer is made. The old one is closed when its last request has ended. What cannot
be loaded changes nothing. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from phosphene.errors import ReloadUnderWay, Unavailable
from service.catalogue import Catalogue
from service.observing.logs import log_event

__all__ = ["Generations", "Opener"]

Opener = Callable[[Catalogue | None], AbstractAsyncContextManager[Catalogue]]
"""Opens what the settings name now; may take over what has not changed from the catalogue that still answers."""


class Generations:
    """Holds what is served; an async context manager that closes it."""

    def __init__(
        self,
        opener: Opener,
        warm: Callable[[Catalogue], Awaitable[None]],
        on_switched: Callable[[Catalogue], None],
    ) -> None:
        """Prepare to serve.

        Args:
            opener: opens a catalogue.
            warm: runs everything of it once, so that no request pays for lazy set-up.
            on_switched: told what is served from now on.
        """
        self._opener = opener
        self._warm = warm
        self._on_switched = on_switched
        self._current: _Opened | None = None
        self._retired: set[_Opened] = set()
        self._past_ids: set[str] = set()
        self._outdated_ids: frozenset[str] = frozenset()
        self._loading: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        """Nothing is open before the first `load`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give up a load under way and close every generation; whoever answers from one has ended by now."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait((self._loading,))
        left = [*self._retired, *([self._current] if self._current is not None else [])]
        self._current = None
        self._retired.clear()
        for opened in left:
            await opened.close()

    @property
    def current(self) -> Catalogue | None:
        """What answers now; None before the first load."""
        return None if self._current is None else self._current.catalogue

    @contextmanager
    def lease(self) -> Iterator[Catalogue]:
        """Hold what answers now while an answer is made from it; raises `Unavailable` before the first load."""
        opened = self._current
        if opened is None:
            raise Unavailable("the service is loading what it serves; try again, or ask another replica")
        opened.lease_count += 1
        try:
            yield opened.catalogue
        finally:
            opened.lease_count -= 1
            opened.tell_if_idle()

    def is_outdated(self, generation_id: str) -> bool:
        """Whether an answer of this generation may show an image that was taken down since."""
        return generation_id in self._outdated_ids

    async def load(self) -> bool:
        """Open what the settings name now and switch to it; tells whether it differs from what was served.

        Where images were taken down, by this load or by an earlier one, this returns once the last answer that may show
        them has been made.

        Raises:
            ReloadUnderWay: another load has not ended.
            PhospheneError: it cannot be opened; what was served is served on.
        """
        if self._loading is not None:
            raise ReloadUnderWay("another reload has not ended; wait for its answer, then ask again")
        self._loading = asyncio.current_task()
        try:
            switched = await self._load()
        finally:
            self._loading = None
        outdated = [opened for opened in self._retired if opened.catalogue.generation_ids & self._outdated_ids]
        if outdated:
            await asyncio.gather(*(opened.idle() for opened in outdated))
            log_event("taken down", id=None if self._current is None else self._current.catalogue.id)
        return switched

    async def _load(self) -> bool:
        before = self._current
        opened = await _Opened.open(self._opener, None if before is None else before.catalogue)
        try:
            if before is not None and opened.catalogue.id == before.catalogue.id:
                await opened.close()
                return False
            await self._warm(opened.catalogue)
        except BaseException:
            await opened.close()
            raise
        self._current = opened
        if before is not None:
            self._outdate(before.catalogue, opened.catalogue)
        self._on_switched(opened.catalogue)
        log_event("generation", id=opened.catalogue.id)
        if before is not None:
            self._retire(before)
        return True

    def _outdate(self, before: Catalogue, now: Catalogue) -> None:
        """Note which answers must not be given any more."""
        self._past_ids |= before.generation_ids
        if now.take_down_ids - before.take_down_ids:
            self._outdated_ids = frozenset(self._past_ids)
        self._outdated_ids -= now.generation_ids

    def _retire(self, opened: _Opened) -> None:
        """Close a generation once nobody answers from it, without waiting for that here."""
        self._retired.add(opened)

        async def close_when_idle() -> None:
            await opened.idle()
            if opened in self._retired:
                self._retired.discard(opened)
                await opened.close()

        opened.closing = asyncio.create_task(close_when_idle())


class _Opened:
    """A catalogue with its lifetime and the number of requests that answer from it."""

    def __init__(self, catalogue: Catalogue, lifetime: AsyncExitStack) -> None:
        self.catalogue = catalogue
        self.lease_count = 0
        self.closing: asyncio.Task[None] | None = None
        self._lifetime = lifetime
        self._idle = asyncio.Event()

    @classmethod
    async def open(cls, opener: Opener, before: Catalogue | None) -> Self:
        lifetime = AsyncExitStack()
        return cls(await lifetime.enter_async_context(opener(before)), lifetime)

    async def idle(self) -> None:
        """Wait until no request answers from it; only for one that gets no new requests."""
        self.tell_if_idle()
        while self.lease_count:
            self._idle.clear()
            await self._idle.wait()

    def tell_if_idle(self) -> None:
        if not self.lease_count:
            self._idle.set()

    async def close(self) -> None:
        try:
            await self._lifetime.aclose()
        except Exception as error:
            # What could not be closed must not take the generation that answers with it.
            log_event("generation not closed", level=logging.ERROR, error=error)
