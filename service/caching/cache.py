"""The cache of codes: what one request computed, the next one need not; with Redis across replicas, without it here.

A request asks Redis once and for at most 45 ms; whatever comes of it, it has its value, for then it computes. It waits
for another replica's value only where Redis is quick enough for its word, too. Writes go out in the background. What
Redis cannot keep (away, full, a replica) this process keeps, within bounds, and serves until Redis answers again. A
value is immutable: everything that it depends on is in its key. Knows neither images nor the wire.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self, TypeAlias, assert_never, runtime_checkable

from service.caching.circuit import CircuitState
from service.caching.envelope import unwrap
from service.caching.local_cache import LocalCache
from service.caching.redis_codes import (
    Absent,
    Away,
    Claimed,
    Follow,
    Found,
    Lead,
    Poisoned,
    RedisCodes,
    Refused,
    refusal,
)
from service.caching.redis_link import Answer
from service.caching.redis_store import RedisStore, Word
from service.caching.single_flight import SingleFlight
from service.claims import Lane
from service.observing.logs import log_event

__all__ = ["CacheBounds", "CacheEvents", "CacheKey", "CacheResult", "CodeCache", "Places"]

Compute: TypeAlias = Callable[[], Awaitable[bytes]]


class CacheResult(StrEnum):
    """What came of one look-up; every `fetch` and `get` that is not cancelled tells exactly one."""

    HIT = "hit"
    MISS = "miss"
    COALESCED = "coalesced"
    """Another request, here or in another replica, was making it."""
    POISONED = "poisoned"
    """Redis held something else than the value; it is overwritten."""
    ERROR = "error"
    """Not here, and Redis did not answer in time or gave an error."""
    BYPASSED = "bypassed"
    """Not here, and Redis was not asked: it is away."""


@runtime_checkable
class CacheEvents(Protocol):
    """What an observer hears; called on the event loop, must be quick and must not raise."""

    def cache_result(self, result: str) -> None:
        """What came of one look-up: a `CacheResult`."""


@runtime_checkable
class Places(Protocol):
    """What a request takes in hand while its value is made; called on the event loop."""

    def lead(self) -> None:
        """It begins to make the value, for whoever asks meanwhile as well; must not raise."""

    def follow(self) -> AbstractContextManager[object]:
        """It waits for another request to make the value, until this is left; what it raises ends the request."""


class _NoPlaces:
    def lead(self) -> None:
        """Nothing is taken."""

    def follow(self) -> AbstractContextManager[object]:
        """Nothing is taken."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that decides a value; what is not in here must not change the value."""

    sha256: str
    """Digest of the image's bytes, hexadecimal."""
    bundle_id: str
    """The bundle."""
    code_id: str
    """What decides its codes."""
    generation: str
    """The generation of all artefacts that is served."""
    engine: str
    """What ran it, such as `torch` or `onnxruntime-int8`."""
    want: str
    """What was computed beside the code, in a canonical form."""
    caller: str = ""
    """Whose value it is, where callers must not learn of each other's images; empty: everybody's."""

    def digest(self) -> bytes:
        """32 bytes that differ for keys that differ."""
        setting = _setting(self.bundle_id, self.code_id, self.generation, self.engine, self.want, self.caller)
        return hashlib.sha256(setting + self.sha256.encode()).digest()

    def text(self) -> str:
        """The digest in hexadecimal; it gives nothing of the key away."""
        return self.digest().hex()


@dataclass(frozen=True, kw_only=True)
class CacheBounds:
    """How long values live, and how long replicas wait for each other."""

    ttl_s: float = 86400.0
    """Seconds that a value lives in Redis, varied by 10 %."""
    value_limit_bytes: int = 4 * 2**20
    """A larger value is not kept."""
    follow_s: float = 0.5
    """Seconds that a request waits for another replica to make its value, before it makes it itself."""
    follow_within_s: float = 0.02
    """It waits only where Redis answered within so many seconds: the value's way through Redis takes as long again, and
    both together stay within what a request may lose by Redis."""
    lease_s: float = 10.0
    """Seconds after which a replica that has said nothing is not waited for any more."""


class CodeCache:
    """Values by key; an async context manager that owns the computations under way."""

    def __init__(
        self, *, local: LocalCache, store: RedisStore | None, events: CacheEvents, bounds: CacheBounds | None = None
    ) -> None:
        """Join what it needs.

        Args:
            local: serves where Redis does not.
            store: entered by the owner, before this and left after it; None: there is no Redis.
            events: told of every look-up.
            bounds: how long things live; None is the service's own.
        """
        self._local = local
        self._store = store
        self._events = events
        self._bounds = bounds or CacheBounds()
        self._codes = (
            None
            if store is None
            else RedisCodes(
                store,
                ttl_s=self._bounds.ttl_s,
                lease_s=self._bounds.lease_s,
                value_limit_bytes=self._bounds.value_limit_bytes,
            )
        )
        self._flights: SingleFlight[tuple[bytes, bool]] = SingleFlight()
        self._is_refused = False

    async def __aenter__(self) -> Self:
        """Nothing to start."""
        await self._flights.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel the computations that are still under way."""
        await self._flights.__aexit__()

    async def fetch(
        self, key: CacheKey, compute: Compute, *, lane: Lane = Lane.INTERACTIVE, places: Places | None = None
    ) -> tuple[bytes, bool]:
        """The value of a key, and whether it came without this caller's `compute`.

        A leader whose caller leaves goes on for those who wait for the same value, and ends with the last of them.
        Nobody interactive waits for a bulk request of this replica, and for one of another replica `follow_s` at most.

        Args:
            key: what is asked for.
            compute: makes it; called once at most.
            lane: how urgent it is.
            places: told whether this request makes the value or waits for another that does.

        Raises:
            Exception: what this caller's `compute` raised; it is kept nowhere. What `places` raised.
        """
        taken = _NoPlaces() if places is None else places
        digest = key.digest()
        if self._codes is None and (value := self._local.get(digest)) is not None:
            self._tell(CacheResult.HIT)
            return value, True

        def lead() -> Coroutine[Any, Any, tuple[bytes, bool]]:
            taken.lead()
            return self._look_or_make(digest, compute)

        def follow() -> AbstractContextManager[object]:
            try:
                return taken.follow()
            except Exception:
                self._tell(CacheResult.COALESCED)
                raise

        (value, was_hit), is_anothers = await self._flights.run(
            digest, lead, lambda: self._make_alone(digest, compute), lane=lane, follow=follow
        )
        if is_anothers:
            self._tell(CacheResult.COALESCED)
        return value, was_hit or is_anothers

    async def get(self, key: CacheKey) -> bytes | None:
        """The value if there is one; waits for nobody who makes it."""
        digest = key.digest()
        if self._codes is None:
            return self._look_here(digest, CacheResult.MISS)
        claimed = await self._codes.peek(digest)
        if isinstance(claimed, Found):
            self._tell(CacheResult.HIT)
            return claimed.value
        return self._look_here(digest, _meaning(claimed))

    async def put(self, key: CacheKey, value: bytes) -> None:
        """Keep a value that was made without `fetch`; returns before it is written."""
        self._keep(key.digest(), value)

    async def _look_or_make(self, digest: bytes, compute: Compute) -> tuple[bytes, bool]:
        if self._codes is None or self._store is None:
            self._tell(CacheResult.MISS)
            return await self._make(digest, compute), False
        # Listens before it asks: another replica's word may come before the answer does.
        with self._store.word(digest) as word:
            try:
                claimed = await self._codes.claim(digest)
            except BaseException:
                # Nobody is left to make it, and others would wait for this replica.
                self._codes.abandon(digest)
                raise
            result = _meaning(claimed)
            match claimed:
                case Found(value=found):
                    self._tell(result)
                    return found, True
                case Refused(reason=reason):
                    self._note_refusal(reason)
                case _:
                    pass
            # Kept here while Redis was away or kept nothing: as good as made, and Redis gets it now.
            here = self._local.get(digest)
            if here is not None:
                self._tell(CacheResult.HIT if result is not CacheResult.POISONED else result)
                if not isinstance(claimed, Away | Refused):
                    self._keep(digest, here)
                return here, True
            if isinstance(claimed, Follow) and claimed.after_s <= self._bounds.follow_within_s:
                sent = await self._follow(digest, word)
                if sent is not None:
                    self._tell(CacheResult.COALESCED)
                    return sent, True
        self._tell(result)
        return await self._make(digest, compute), False

    async def _follow(self, digest: bytes, word: Word) -> bytes | None:
        """What another replica makes; None where it fails, takes too long, or Redis goes away meanwhile."""
        try:
            async with asyncio.timeout(self._bounds.follow_s):
                data = await word
        except TimeoutError:
            return None
        return unwrap(digest, data) if data else None

    async def _make_alone(self, digest: bytes, compute: Compute) -> tuple[bytes, bool]:
        self._tell(CacheResult.MISS)
        return await self._make(digest, compute), False

    async def _make(self, digest: bytes, compute: Compute) -> bytes:
        try:
            value = await compute()
        except BaseException:
            # Also where Redis gave no answer: the claim may have reached it all the same.
            if self._codes is not None:
                self._codes.abandon(digest)
            raise
        self._keep(digest, value)
        return value

    def _look_here(self, digest: bytes, otherwise: CacheResult) -> bytes | None:
        value = self._local.get(digest)
        self._tell(otherwise if value is None else CacheResult.HIT)
        return value

    def _keep(self, digest: bytes, value: bytes) -> None:
        is_too_large = len(value) > self._bounds.value_limit_bytes
        if self._codes is None:
            if not is_too_large:
                self._local.put(digest, value)
        elif is_too_large:
            self._codes.abandon(digest)
        else:
            kept = self._codes.finish(digest, value)
            kept.add_done_callback(functools.partial(self._kept, digest, value))

    def _kept(self, digest: bytes, value: bytes, kept: asyncio.Future[Answer]) -> None:
        reason = "the service stops" if kept.cancelled() else refusal(kept.result())
        if reason is None:
            self._is_refused = False
            return
        self._local.put(digest, value)
        if self._store is not None and self._store.state is CircuitState.CLOSED:
            self._note_refusal(reason)

    def _note_refusal(self, reason: str) -> None:
        """One line when a Redis that answers begins to keep nothing, none for every value."""
        if not self._is_refused:
            self._is_refused = True
            log_event("redis keeps no values", level=logging.WARNING, reason=reason)

    def _tell(self, result: CacheResult) -> None:
        self._events.cache_result(result.value)


@functools.lru_cache(maxsize=1024)
def _setting(*parts: str) -> bytes:
    """32 bytes that differ for what differs in all but the image, of which many are asked about in a row."""
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _meaning(claimed: Claimed) -> CacheResult:
    """What an answer of Redis comes to where nothing else helps."""
    match claimed:
        case Found():
            return CacheResult.HIT
        case Lead() | Follow() | Absent() | Refused():
            return CacheResult.MISS
        case Poisoned():
            return CacheResult.POISONED
        case Away(was_asked=was_asked):
            return CacheResult.ERROR if was_asked else CacheResult.BYPASSED
        case _:
            assert_never(claimed)
