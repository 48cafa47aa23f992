import asyncio
import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.errors import Overloaded, SettingError
from service.caching.cache import CacheBounds, CacheKey, CodeCache
from service.caching.local_cache import LocalCache
from service.caching.redis_store import RedisStore
from service.claims import Lane
from tests.service.caching.redis_server import Recorder

KEYS = st.builds(CacheKey, **{field.name: st.text(max_size=3) for field in dataclasses.fields(CacheKey)})


def key(sha256="00", **changes):
    given_fields = {"bundle_id": "b", "code_id": "c", "generation": "g", "engine": "torch", "want": ""}
    return CacheKey(sha256=sha256, **(given_fields | changes))


def local_cache(recorder, limit_bytes=10_000, bounds=None):
    return CodeCache(local=LocalCache(limit_bytes=limit_bytes), store=None, events=recorder, bounds=bounds)


def making(value):
    async def make():
        return value

    return make


async def never():
    raise AssertionError("computed what was there")


@given(KEYS, KEYS)
def test_digests_differ_exactly_where_keys_do(left, right):
    assert (left.digest() == right.digest()) is (left == right)
    assert left.text() == left.digest().hex()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheKey)])
def test_every_field_decides(field):
    assert key().digest() != dataclasses.replace(key(), **{field: "another"}).digest()


def test_fields_do_not_run_into_each_other():
    assert key(bundle_id='b", "c', code_id="").digest() != key(bundle_id="b", code_id='c", "').digest()


async def test_what_was_made_once_is_there():
    recorder = Recorder()
    async with local_cache(recorder) as cache:
        assert await cache.get(key()) is None
        assert await cache.fetch(key(), making(b"value")) == (b"value", False)
        assert await cache.fetch(key(), never) == (b"value", True)
        assert await cache.get(key()) == b"value"
        assert await cache.get(key(want="more")) is None
        await cache.put(key("01"), b"other")
        assert await cache.fetch(key("01"), never) == (b"other", True)
    assert recorder.results == ["miss", "miss", "hit", "hit", "miss", "hit"]


async def test_errors_are_kept_nowhere():
    async def fail():
        raise ValueError("broken")

    recorder = Recorder()
    async with local_cache(recorder) as cache:
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                await cache.fetch(key(), fail)
        assert await cache.fetch(key(), making(b"value")) == (b"value", False)
    assert recorder.results == ["miss", "miss", "miss"]


async def test_requests_for_one_key_share_one_computation():
    gate, begun = asyncio.Event(), []

    async def make():
        begun.append(1)
        await gate.wait()
        return b"value"

    recorder = Recorder()
    async with local_cache(recorder) as cache:
        calls = [asyncio.create_task(cache.fetch(key(), make)) for _ in range(10)]
        await asyncio.sleep(0)
        calls[0].cancel()
        gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[1:] == [(b"value", True)] * 9
    assert isinstance(results[0], asyncio.CancelledError)
    assert begun == [1]
    assert recorder.results == ["miss"] + ["coalesced"] * 9


async def test_nobody_interactive_waits_for_what_bulk_makes():
    gate = asyncio.Event()

    async def slow():
        await gate.wait()
        return b"slow"

    recorder = Recorder()
    async with local_cache(recorder) as cache:
        bulk = asyncio.create_task(cache.fetch(key(), slow, lane=Lane.BULK))
        await asyncio.sleep(0)
        assert await cache.fetch(key(), making(b"quick")) == (b"quick", False)
        gate.set()
        assert await bulk == (b"slow", False)
    assert recorder.results == ["miss", "miss"]


class Room:
    """Places for as many as are told."""

    def __init__(self, count):
        self.count, self.leader_count = count, 0

    def lead(self):
        self.leader_count += 1

    @contextlib.contextmanager
    def hold(self):
        self.count -= 1
        yield
        self.count += 1

    def follow(self):
        if not self.count:
            raise Overloaded("full", retry_after_s=1.0)
        return self.hold()


async def test_who_has_no_room_to_wait_is_refused_and_told_of_once():
    gate, room = asyncio.Event(), Room(3)

    async def make():
        await gate.wait()
        return b"value"

    recorder = Recorder()
    async with local_cache(recorder) as cache:
        calls = [asyncio.create_task(cache.fetch(key(), make, places=room)) for _ in range(6)]
        await asyncio.sleep(0)
        assert room.count == 0
        gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert await cache.fetch(key(), never, places=room) == (b"value", True)
    assert results[:4] == [(b"value", False)] + [(b"value", True)] * 3
    assert all(isinstance(result, Overloaded) for result in results[4:])
    assert (room.count, room.leader_count) == (3, 1)
    assert sorted(recorder.results) == ["coalesced"] * 5 + ["hit", "miss"]


async def test_a_value_beyond_the_limit_is_given_and_not_kept():
    async with local_cache(Recorder(), limit_bytes=2**20, bounds=CacheBounds(value_limit_bytes=4)) as cache:
        assert await cache.fetch(key(), making(b"value")) == (b"value", False)
        assert await cache.get(key()) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@host",
        "redis://:s3cret@host:port",
        "redis://:s3cret@host/0?no_such_option=1",
        "redis://:s3cret@[host",
        "rediss://:s3cret@host?ssl_min_version=new",
    ],
)
def test_a_bad_url_is_refused_without_its_password(url):
    with pytest.raises(SettingError, match="PHOSPHENE_REDIS_URL") as refused:
        RedisStore(url, events=Recorder())
    assert "s3cret" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("url", ["redis://me:s3cret@host:1/2?socket_timeout=3", "rediss://:s3cret@host:1/2"])
def test_the_text_of_a_store_holds_no_password(url):
    store = RedisStore(url, events=Recorder())
    assert str(store) == f"{url.partition(':')[0]}://host:1/2"
    assert "s3cret" not in repr(store)
