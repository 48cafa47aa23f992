import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.errors import RateLimited
from service.caching.redis_link import Answered, NotAsked
from service.caching.redis_store import RedisBounds, RedisStore
from service.limits import LocalBuckets, RateLimit, RateLimiter
from tests.service.caching.redis_proxy import RedisProxy
from tests.service.caching.redis_server import Recorder, running_redis

PATIENT = {"patience_s": 20.0, "clock": time.monotonic}
SLOW_HOUR = RateLimit(rate_per_s=1 / 3600, burst=5)


class Clock:
    def __init__(self):
        self.now_s = 50.0

    def __call__(self):
        return self.now_s


@pytest.fixture(scope="module")
def server():
    with running_redis() as running:
        yield running


@pytest.fixture
async def store(server):
    server.run("FLUSHALL")
    async with RedisStore(server.url, events=Recorder(), bounds=RedisBounds(patience_s=5.0)) as opened:
        yield opened


async def wait_s(limiter, caller):
    """What one check says; 0 where the caller may go on."""
    try:
        await limiter.check(caller)
    except RateLimited as error:
        return error.retry_after_s
    return 0.0


async def admitted_count(limiters, caller, tries):
    """How many of so many tries at once pass, spread over the limiters."""

    async def passes(limiter):
        return await wait_s(limiter, caller) == 0.0

    return sum(await asyncio.gather(*[passes(limiters[number % len(limiters)]) for number in range(tries)]))


@given(st.integers(1, 200), st.integers(1, 20), st.lists(st.integers(0, 3000), max_size=100))
def test_a_local_bucket_agrees_with_a_plain_one(rate_tenths, burst, pauses_ms):
    rate_per_s = rate_tenths / 10
    clock = Clock()
    buckets = LocalBuckets(RateLimit(rate_per_s=rate_per_s, burst=burst), clock=clock)
    tokens = float(burst)
    for pause_ms in pauses_ms:
        clock.now_s += pause_ms / 1000
        tokens = min(burst, tokens + pause_ms / 1000 * rate_per_s)
        wait_s = buckets.take("caller")
        if abs(tokens - 1) < 1e-6:
            return  # On the very edge either may be right.
        assert (wait_s == 0.0) is (tokens >= 1)
        if tokens >= 1:
            tokens -= 1
        else:
            assert wait_s == pytest.approx((1 - tokens) / rate_per_s)


@given(st.sampled_from([0.1, 1.0, 3.0, 7.0, 1000.0]), st.integers(1, 10))
def test_whoever_comes_back_when_told_is_served(rate_per_s, burst):
    clock = Clock()
    buckets = LocalBuckets(RateLimit(rate_per_s=rate_per_s, burst=burst), clock=clock)
    for _ in range(burst):
        assert buckets.take("caller") == 0.0
    for _ in range(20):
        wait_s = buckets.take("caller")
        assert 0 < wait_s <= 1 / rate_per_s * (1 + 1e-9)
        clock.now_s += wait_s
        assert buckets.take("caller") == 0.0


def test_callers_have_their_own_buckets_and_are_forgotten_in_turn():
    buckets = LocalBuckets(SLOW_HOUR, clock=Clock(), caller_limit=3)
    for caller in "abcabcd":
        assert buckets.take(caller) == 0.0
    assert len(buckets) == 3


@given(st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_who_is_held_is_served_when_told_and_never_before(hold_s, pause_s):
    clock = Clock()
    buckets = LocalBuckets(RateLimit(rate_per_s=0.5, burst=3), clock=clock, caller_limit=2)
    buckets.hold("me", hold_s)
    clock.now_s += pause_s
    left_s = min(hold_s, 2.0) - pause_s
    assert buckets.take("me") == pytest.approx(max(left_s, 0.0), abs=1e-6)
    for caller in "abc":
        buckets.hold(caller, 1.0)
    assert len(buckets) == 2


class FarStore(RedisStore):
    """A Redis whose answers come when the test says so."""

    def __init__(self):
        self.asked = []

    def ask(self, script, *, keys, arguments):
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def says(self, *words, after_s=0.04, number=-1):
        self.asked[number].set_result(Answered(list(words), after_s))


async def late_limiter():
    """A limiter that has just learnt that its Redis is slow; so patient that it learns it from answers alone."""
    store = FarStore()
    limiter = RateLimiter(RateLimit(rate_per_s=1.0, burst=3), store=store, clock=Clock(), patience_s=3600.0)
    check = asyncio.create_task(limiter.check("me"))
    await asyncio.sleep(0)
    store.says(b"go", after_s=3601.0)
    await check
    return limiter, store


async def test_nobody_waits_for_a_redis_that_was_late_and_it_counts_all_the_same():
    limiter, store = await late_limiter()
    async with asyncio.timeout(20):
        for _ in range(2):
            await limiter.check("me")
    assert len(store.asked) == 3
    with pytest.raises(RateLimited):
        await limiter.check("me")
    assert len(store.asked) == 3, "what is refused here is not counted there"


async def test_a_late_refusal_holds_for_what_the_caller_asks_next():
    limiter, store = await late_limiter()
    await limiter.check("me")
    store.says(b"wait", 700_000, after_s=3601.0)
    await asyncio.sleep(0)
    with pytest.raises(RateLimited) as refused:
        await limiter.check("me")
    assert refused.value.retry_after_s == pytest.approx(0.7)
    await limiter.check("you")


async def test_a_redis_that_is_quick_again_decides_again():
    limiter, store = await late_limiter()
    await limiter.check("me")
    store.says(b"go", after_s=0.001)
    await asyncio.sleep(0)
    check = asyncio.create_task(limiter.check("me"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not check.done()
    store.says(b"wait", 500_000, after_s=0.001)
    with pytest.raises(RateLimited):
        await check


async def test_the_first_late_answer_is_waited_for_no_longer_than_the_patience():
    store = FarStore()
    limiter = RateLimiter(SLOW_HOUR, store=store, clock=Clock(), patience_s=0.001)
    async with asyncio.timeout(20):
        assert await admitted_count([limiter], "me", 20) == 5
    for asked in store.asked:
        asked.set_result(NotAsked("the connection is lost", is_failure=True))
    await asyncio.sleep(0)
    assert await admitted_count([limiter], "me", 5) == 0


async def test_without_redis_the_process_decides():
    limiter = RateLimiter(SLOW_HOUR, store=None, clock=Clock())
    assert await admitted_count([limiter], "me", 20) == 5
    assert await admitted_count([limiter], "you", 3) == 3


async def test_a_refusal_says_the_limit_and_the_remedy():
    limiter = RateLimiter(RateLimit(rate_per_s=0.5, burst=1), store=None, clock=Clock())
    await limiter.check("me")
    with pytest.raises(RateLimited, match=r"0\.5 times a second .* burst of 1 .*PHOSPHENE_RATE_PER_S.* 2 s") as refused:
        await limiter.check("me")
    assert refused.value.retry_after_s == pytest.approx(2.0)


async def test_replicas_share_one_bucket(store):
    limiters = [RateLimiter(SLOW_HOUR, store=store, **PATIENT) for _ in range(3)]
    assert await admitted_count(limiters, "me", 30) == 5
    assert await admitted_count(limiters, "you", 30) == 5


async def test_a_bucket_in_redis_fills_again(store):
    limiter = RateLimiter(RateLimit(rate_per_s=1000.0, burst=2), store=store, **PATIENT)
    waits_s = [await wait_s(limiter, "me") for _ in range(3)]
    assert max(waits_s) <= 0.001
    async with asyncio.timeout(20):
        while await wait_s(limiter, "me"):
            await asyncio.sleep(0.001)


async def test_callers_are_not_named_in_redis_and_buckets_go_by_themselves(server, store):
    await RateLimiter(RateLimit(rate_per_s=1.0, burst=5), store=store, **PATIENT).check("alice@example.com")
    (key,) = server.run("KEYS", "*")
    assert b"alice" not in key
    assert 0 < server.run("PTTL", key) <= 1002


@pytest.mark.parametrize("poison", ["inf", "nan", "1e300", "-5", "words", "9e15"])
async def test_a_poisoned_bucket_is_a_full_one(server, store, poison):
    limiter = RateLimiter(SLOW_HOUR, store=store, **PATIENT)
    await limiter.check("me")
    (key,) = server.run("KEYS", "*")
    server.run("SET", key, poison)
    assert await admitted_count([limiter], "me", 20) == 5


@pytest.mark.parametrize("fault", ["read only", "full", "wrong type"])
async def test_where_redis_cannot_count_the_process_does(server, store, fault):
    limiter = RateLimiter(SLOW_HOUR, store=store, **PATIENT)
    await limiter.check("me")
    (key,) = server.run("KEYS", "*")
    try:
        match fault:
            case "read only":
                server.run("REPLICAOF", "127.0.0.1", "1")
            case "full":
                server.run("CONFIG", "SET", "maxmemory", "1")
            case "wrong type":
                server.run("DEL", key)
                server.run("RPUSH", key, "a list")
        # One went to the bucket here along with the one in Redis; a list is overwritten by a full bucket.
        assert await admitted_count([limiter], "me", 20) == (5 if fault == "wrong type" else 4)
        assert store.state == "closed"
    finally:
        server.run("REPLICAOF", "NO", "ONE")
        server.run("CONFIG", "SET", "maxmemory", "0")


async def test_a_redis_that_hangs_fails_nobody_and_is_counted_on(server):
    recorder = Recorder()
    async with (
        RedisProxy(server.port) as proxy,
        RedisStore(proxy.url, events=recorder, bounds=RedisBounds(probe_interval_s=0.05)) as store,
    ):
        await recorder.state("closed")
        limiter = RateLimiter(SLOW_HOUR, store=store, clock=time.monotonic)
        proxy.stall()
        async with asyncio.timeout(20):
            assert await admitted_count([limiter], "me", 20) == 5
            while store.state == "closed":
                await admitted_count([limiter], "me", 1)
        await proxy.heal()
        await recorder.state("closed")
        assert await admitted_count([RateLimiter(SLOW_HOUR, store=store, **PATIENT)], "somebody", 20) == 5
