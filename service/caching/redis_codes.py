"""The shared cache's side of the conversation: who finds a value, who makes it, and who waits for whom.

One script answers a request's only question: here is the value; or make it; or another replica makes it and will send
word. The leader's name and those of the replicas that wait for it are one list beside the value, which expires by
itself when a leader dies. Finishing keeps the value, sends it to exactly those that wait, and clears the list, in one
step, so that no word is missed. Decides nothing about what is done then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

from service.caching.envelope import OVERHEAD_BYTES, unwrap, wrap
from service.caching.redis_link import Answer, Answered, NotAsked, Unanswered
from service.caching.redis_store import RedisStore

__all__ = ["Absent", "Away", "Claimed", "Follow", "Found", "Lead", "Poisoned", "RedisCodes", "Refused", "refusal"]

# Values and lists of one key share a slot of a Redis cluster, through the braces.
# The version belongs to the layout of what is kept: another one is another key, not a poisoned value.
_VALUE_KEY = b"phosphene:code:1:{%s}"
_LEAD_KEY = b"phosphene:lead:1:{%s}"
_TTL_JITTER = 0.1

# A store that takes no writes (full, or a replica) still gives what it has, which is why errors are caught here.
# Whoever finds its own name at the head asked before, and never heard the answer: it leads.
_CLAIM = b"""
local number, limit_bytes, own_name, lease_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local size = redis.pcall('STRLEN', KEYS[1])
if type(size) == 'table' or size > limit_bytes then return {number, 'poisoned'} end
if size > 0 then return {number, 'found', redis.call('GET', KEYS[1])} end
if own_name == '' then return {number, 'absent'} end
local length = redis.pcall('RPUSH', KEYS[2], own_name)
if type(length) == 'table' then
  if not string.find(length.err, 'WRONGTYPE', 1, true) then return {number, 'refused', length.err} end
  redis.pcall('DEL', KEYS[2])
  length = redis.pcall('RPUSH', KEYS[2], own_name)
end
if length > 1 and redis.call('LINDEX', KEYS[2], 0) ~= own_name then return {number, 'follow'} end
redis.call('PEXPIRE', KEYS[2], lease_ms)
return {number, 'lead'}
"""

_FINISH = b"""
local number, ttl_ms, topic, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local kept = redis.pcall('SET', KEYS[1], value, 'PX', ttl_ms)
local names = redis.pcall('LRANGE', KEYS[2], 1, -1)
if not names.err then
  for _, name in ipairs(names) do redis.call('PUBLISH', name, topic .. value) end
end
redis.pcall('DEL', KEYS[2])
if kept.err then return {number, 'refused', kept.err} end
return {number, 'kept'}
"""

_ABANDON = b"""
local number, topic, own_name = ARGV[1], ARGV[2], ARGV[3]
if redis.pcall('LINDEX', KEYS[1], 0) ~= own_name then return {number, 'another leads'} end
for _, name in ipairs(redis.call('LRANGE', KEYS[1], 1, -1)) do redis.call('PUBLISH', name, topic) end
redis.pcall('DEL', KEYS[1])
return {number, 'abandoned'}
"""


@dataclass(frozen=True)
class Found:
    """The value, checked."""

    value: bytes


@dataclass(frozen=True)
class Lead:
    """There is none, and others will wait for this replica to make it."""


@dataclass(frozen=True)
class Follow:
    """There is none, and another replica makes it."""

    after_s: float
    """Seconds that the answer took; the other replica's word will take about as long again."""


@dataclass(frozen=True)
class Absent:
    """There is none, and nothing was claimed."""


@dataclass(frozen=True)
class Poisoned:
    """There is something that is not the value of this key."""


@dataclass(frozen=True)
class Refused:
    """There is none, and Redis takes no writes."""

    reason: str


@dataclass(frozen=True)
class Away:
    """Redis did not say."""

    was_asked: bool


Claimed: TypeAlias = Found | Lead | Follow | Absent | Poisoned | Refused | Away


class RedisCodes:
    """Values by digest in one Redis."""

    def __init__(self, store: RedisStore, *, ttl_s: float, lease_s: float, value_limit_bytes: int) -> None:
        """Join what it needs.

        Args:
            store: where values are.
            ttl_s: seconds that a value lives, varied by 10 %, so that what came together does not go together.
            lease_s: seconds after which a leader that has said nothing leads no more.
            value_limit_bytes: a larger value in Redis is not fetched; it is not ours.
        """
        self._store = store
        self._ttl_s = ttl_s
        self._lease_ms = max(1, round(lease_s * 1000))
        self._limit_bytes = value_limit_bytes + OVERHEAD_BYTES

    async def claim(self, digest: bytes) -> Claimed:
        """The value, or who makes it."""
        return await self._ask(digest, self._store.name)

    async def peek(self, digest: bytes) -> Claimed:
        """The value, or that there is none; claims nothing."""
        return await self._ask(digest, b"")

    def finish(self, digest: bytes, value: bytes) -> asyncio.Future[Answer]:
        """Keep a value and send it to who waits for it, in the background; `refusal` reads the answer."""
        ttl_ms = max(1, round(self._ttl_s * 1000 * random.uniform(1 - _TTL_JITTER, 1 + _TTL_JITTER)))
        return self._store.tell(_FINISH, keys=_keys(digest), arguments=(ttl_ms, digest, wrap(digest, value)))

    def abandon(self, digest: bytes) -> None:
        """Tell who waits for this replica, if any, that it makes nothing; in the background."""
        self._store.tell(_ABANDON, keys=_keys(digest)[1:], arguments=(digest, self._store.name))

    async def _ask(self, digest: bytes, name: bytes) -> Claimed:
        answer = await self._store.ask(_CLAIM, keys=_keys(digest), arguments=(self._limit_bytes, name, self._lease_ms))
        match answer:
            case Answered(words=[b"follow"], after_s=after_s):
                return Follow(after_s)
            case Answered(words=words):
                return _claimed(digest, words)
            case Unanswered():
                return Away(was_asked=True)
            case NotAsked():
                return Away(was_asked=False)
            case _:
                assert_never(answer)


def refusal(answer: Answer) -> str | None:
    """Why a value was not kept; None: it was."""
    match answer:
        case Answered(words=[b"kept"]):
            return None
        case Answered(words=words):
            return b" ".join(word for word in words[1:] if isinstance(word, bytes)).decode(errors="replace")
        case Unanswered(reason=reason) | NotAsked(reason=reason):
            return reason
        case _:
            assert_never(answer)


def _keys(digest: bytes) -> tuple[bytes, bytes]:
    name = digest.hex().encode()
    return _VALUE_KEY % name, _LEAD_KEY % name


def _claimed(digest: bytes, words: Sequence[Any]) -> Claimed:
    match words:
        case [b"found", bytes(data)]:
            value = unwrap(digest, data)
            return Poisoned() if value is None else Found(value)
        case [b"lead"]:
            return Lead()
        case [b"absent"]:
            return Absent()
        case [b"refused", bytes(reason)]:
            return Refused(reason.decode(errors="replace"))
        case _:
            return Poisoned()
