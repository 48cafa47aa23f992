"""How often one caller may ask: a token bucket for each, in Redis for all replicas together, else in this process.

The bucket is kept as one number, the time at which it is full again (the generic cell rate algorithm; ITU-T I.371).
Redis decides by its own clock, so replicas need not agree on the time. It has 5 ms for that, a tenth of a
request's patience: together with the cache's own try no request waits 60 ms for a Redis that hangs. Where it takes
longer, is away or takes no writes, the bucket of this process decides: a limit that is loose for a while, never an
error. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from phosphene.errors import RateLimited
from service.caching.redis_link import Answered
from service.caching.redis_store import RedisStore

__all__ = ["LocalBuckets", "RateLimit", "RateLimiter"]

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
        if len(self._full_s) > self._caller_limit:
            self._full_s.popitem(last=False)
        return 0.0


class RateLimiter:
    """Refuses callers who ask too often."""

    def __init__(
        self,
        limit: RateLimit,
        *,
        store: RedisStore | None,
        clock: Callable[[], float],
        patience_s: float = 0.005,
    ) -> None:
        """Join what it needs.

        Args:
            limit: the same for every caller.
            store: where replicas share buckets; None: each has its own.
            clock: monotonic seconds, for the buckets of this process.
            patience_s: seconds that Redis may take to decide.
        """
        self._limit = limit
        self._store = store
        self._patience_s = patience_s
        self._local = LocalBuckets(limit, clock=clock)

    async def check(self, caller: str) -> None:
        """Count one request of this caller.

        Args:
            caller: its name, which reaches Redis as a digest only.

        Raises:
            RateLimited: it asks too often; carries the delay after which it may.
        """
        wait_s = None if self._store is None else await self._shared_wait_s(self._store, caller)
        if wait_s is None:
            wait_s = self._local.take(caller)
        elif wait_s == 0.0:
            # Counted here too, so that a Redis that goes away leaves no full bucket behind.
            self._local.take(caller)
        if wait_s > 0.0:
            raise RateLimited(
                f"this caller asks more often than {self._limit.rate_per_s:g} times a second with a burst of"
                f" {self._limit.burst} (PHOSPHENE_RATE_PER_S, PHOSPHENE_RATE_BURST); try again in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )

    async def _shared_wait_s(self, store: RedisStore, caller: str) -> float | None:
        """What Redis decides; None where it does not."""
        key = _BUCKET_KEY % hashlib.sha256(caller.encode()).hexdigest().encode()
        interval_us = math.ceil(self._limit.interval_s * 1e6)
        window_us = interval_us * self._limit.burst
        try:
            async with asyncio.timeout(self._patience_s):
                answer = await store.ask(_TAKE, keys=(key,), arguments=(interval_us, window_us))
        except TimeoutError:
            return None
        match answer:
            case Answered(words=[b"go"]):
                return 0.0
            case Answered(words=[b"wait", int(wait_us)]):
                return min(max(wait_us, 1) / 1e6, self._limit.interval_s)
            case _:
                return None
