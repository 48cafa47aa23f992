"""How often one caller may ask: a token bucket for each, in Redis for all replicas together, else in this process.

The bucket is kept as one number, the time at which it is full again (the generic cell rate algorithm; ITU-T I.371).
Redis decides by its own clock, so replicas need not agree on the time. It has 5 ms for that, a tenth of what a request
may lose by Redis. Where it takes longer, the bucket of this process decides, and what Redis says later holds for what
the caller asks next; until it is quick again it is asked in passing, and nobody waits. Where it is away or takes no
writes, the bucket of this process decides alone: a limit that is loose for a while, never an error. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from phosphene.errors import RateLimited
from service.caching.redis_link import Answer, Answered
from service.caching.redis_store import RedisStore

__all__ = ["RATE_PATIENCE_S", "LocalBuckets", "RateLimit", "RateLimiter"]

RATE_PATIENCE_S = 0.005
"""Seconds for which a request waits for Redis to decide."""
_BUCKET_KEY = b"phosphene:rate:1:%s"

# A time that no bucket can hold (poisoned, or the server's clock was set back) counts as a full bucket.
_TAKE = b"""
local number, interval_us, window_us = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local held = redis.pcall('GET', KEYS[1])
local full_us = type(held) == 'string' and tonumber(held) or now_us
if not (full_us > now_us and full_us <= now_us + window_us) then full_us = now_us end
local wait_us = full_us + interval_us - now_us - window_us
if wait_us > 0 then return {number, 'wait', math.ceil(wait_us)} end
full_us = full_us + interval_us
local ttl_ms = math.ceil((full_us - now_us) / 1000) + 1
local kept = redis.pcall('SET', KEYS[1], string.format('%.0f', full_us), 'PX', ttl_ms)
if kept.err then return {number, 'refused'} end
return {number, 'go'}
"""


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """How often one caller may ask."""

    rate_per_s: float
    """Requests a second in the long run; greater than 0."""
    burst: int
    """Requests at once after a pause; at least 1."""

    @property
    def interval_s(self) -> float:
        """Seconds that one request takes from the bucket."""
        return 1.0 / self.rate_per_s

    @property
    def window_s(self) -> float:
        """Seconds in which an empty bucket fills."""
        return self.burst / self.rate_per_s


class LocalBuckets:
    """The buckets of this process: those of the callers seen last, the others being forgotten, which means full."""

    def __init__(self, limit: RateLimit, *, clock: Callable[[], float], caller_limit: int = 10_000) -> None:
        """Begin with full buckets.

        Args:
            limit: the same for every caller.
            clock: monotonic seconds.
            caller_limit: most callers remembered.
        """
        self._limit = limit
        self._clock = clock
        self._caller_limit = caller_limit
        self._full_s: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Callers remembered."""
        return len(self._full_s)

    def take(self, caller: str) -> float:
        """Take one request; 0 where the caller may go on, else the seconds after which one will be there."""
        now_s = self._clock()
        full_s = max(self._full_s.get(caller, now_s), now_s)
        wait_s = full_s + self._limit.interval_s - now_s - self._limit.window_s
        # A billionth of an interval is what sums of floats may be off by.
        if wait_s > self._limit.interval_s * 1e-9:
            return wait_s
        self._full_s[caller] = full_s + self._limit.interval_s
        self._full_s.move_to_end(caller)
        self._forget()
        return 0.0

    def hold(self, caller: str, wait_s: float) -> None:
        """Refuse a caller for so long at least, one interval at most: who sees more has counted its requests."""
        empty_s = self._clock() + self._limit.window_s - self._limit.interval_s
        held_s = self._full_s.get(caller, -math.inf)
        self._full_s[caller] = max(held_s, empty_s + min(wait_s, self._limit.interval_s))
        self._full_s.move_to_end(caller)
        self._forget()

    def _forget(self) -> None:
        if len(self._full_s) > self._caller_limit:
            self._full_s.popitem(last=False)


class RateLimiter:
    """Refuses callers who ask too often."""

    def __init__(
        self,
        limit: RateLimit,
        *,
        store: RedisStore | None,
        clock: Callable[[], float],
        patience_s: float = RATE_PATIENCE_S,
    ) -> None:
        """Join what it needs.

        Args:
            limit: the same for every caller.
            store: where replicas share buckets; None: each has its own.
            clock: monotonic seconds, for the buckets of this process.
            patience_s: seconds for which a request waits for Redis to decide.
        """
        self._limit = limit
        self._store = store
        self._patience_s = patience_s
        self._local = LocalBuckets(limit, clock=clock)
        self._is_late = False

    async def check(self, caller: str) -> None:
        """Count one request of this caller.

        Args:
            caller: its name, which reaches Redis as a digest only.

        Raises:
            RateLimited: it asks too often; carries the delay after which it may.
        """
        wait_s = await self._wait_s(caller)
        if wait_s > 0.0:
            raise RateLimited(
                f"this caller asks more often than {self._limit.rate_per_s:g} times a second with a burst of"
                f" {self._limit.burst} (PHOSPHENE_RATE_PER_S, PHOSPHENE_RATE_BURST); try again in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )

    async def _wait_s(self, caller: str) -> float:
        """Seconds until the caller may ask; 0: it may, and was counted."""
        if self._store is None:
            return self._local.take(caller)
        if self._is_late:
            wait_s = self._local.take(caller)
            if wait_s == 0.0:
                self._ask(self._store, caller)
            return wait_s
        asked = self._ask(self._store, caller)
        await asyncio.wait((asked,), timeout=self._patience_s)
        if not asked.done():
            self._is_late = True
            return self._local.take(caller)
        decided_s = self._decided_s(asked.result())
        if decided_s:
            return decided_s
        # Counted here too, so that a Redis that goes away leaves no full bucket behind.
        here_s = self._local.take(caller)
        return here_s if decided_s is None else 0.0

    def _ask(self, store: RedisStore, caller: str) -> asyncio.Future[Answer]:
        """Have Redis count one request; what it says is heeded whenever it comes."""
        key = _BUCKET_KEY % hashlib.sha256(caller.encode()).hexdigest().encode()
        interval_us = math.ceil(self._limit.interval_s * 1e6)
        asked = store.ask(_TAKE, keys=(key,), arguments=(interval_us, interval_us * self._limit.burst))
        asked.add_done_callback(lambda asked: self._heed(caller, asked))
        return asked

    def _heed(self, caller: str, asked: asyncio.Future[Answer]) -> None:
        answer = asked.result()
        if isinstance(answer, Answered):
            self._is_late = answer.after_s > self._patience_s
        if wait_s := self._decided_s(answer):
            self._local.hold(caller, wait_s)

    def _decided_s(self, answer: Answer) -> float | None:
        """Seconds until the caller may ask, as Redis has it; None where it does not say."""
        match answer:
            case Answered(words=[b"go"]):
                return 0.0
            case Answered(words=[b"wait", int(wait_us)]):
                return min(max(wait_us, 1) / 1e6, self._limit.interval_s)
            case _:
                return None
