"""The cache on a real redis-server, whole and broken in every way that the proxy and the server can be."""

import asyncio
import contextlib
import json
import logging
import random
import shutil
import signal
import subprocess

import pytest

from service.caching.cache import CacheBounds, CodeCache
from service.caching.envelope import wrap
from service.caching.local_cache import LocalCache
from service.caching.redis_store import RedisBounds, RedisStore
from service.claims import Lane
from service.limits import RATE_PATIENCE_S, RateLimit, RateLimiter
from service.observing.logs import JsonFormatter
from tests.service.caching.redis_proxy import RedisProxy
from tests.service.caching.redis_server import Recorder, free_port, running_redis
from tests.service.caching.test_cache import key, making, never

# A loaded machine must not look like a slow Redis where slowness is not the point.
PATIENT = RedisBounds(patience_s=5.0, write_patience_s=5.0, connect_s=10.0, probe_interval_s=0.05)
BRISK = RedisBounds(probe_interval_s=0.05)


@pytest.fixture(scope="module")
def one_server():
    with running_redis() as running:
        yield running


@pytest.fixture
def server(one_server):
    one_server.run("FLUSHALL")
    return one_server


@contextlib.asynccontextmanager
async def replica(url, *, bounds=PATIENT, cache=None):
    """One replica's cache, its store and what they tell."""
    recorder = Recorder()
    async with (
        RedisStore(url, events=recorder, bounds=bounds) as store,
        CodeCache(local=LocalCache(limit_bytes=10**6), store=store, events=recorder, bounds=cache) as codes,
    ):
        yield codes, store, recorder


def value_of(name):
    return f"value of {name} ".encode() * 50


async def fetch(cache, name):
    value, _ = await cache.fetch(key(name), making(value_of(name)))
    assert value == value_of(name)


async def until(is_so):
    """Let the loop turn until it is so; the bound is against hanging."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.001)


async def test_replicas_share_values(server):
    async with replica(server.url) as (ours, our_store, our), replica(server.url) as (theirs, _, their):
        assert await ours.fetch(key(), making(b"value")) == (b"value", False)
        await our_store.written()
        assert await theirs.fetch(key(), never) == (b"value", True)
        assert await theirs.get(key()) == b"value"
        assert await theirs.get(key(caller="me")) is None
        await theirs.put(key("01"), b"put")
    async with replica(server.url) as (third, _, _):
        assert await third.fetch(key("01"), never) == (b"put", True)
    assert our.results == ["miss"]
    assert their.results == ["hit", "hit", "miss"]


async def test_nobody_interactive_waits_for_what_bulk_makes_in_the_same_replica(server):
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slow():
        begun.set()
        await gate.wait()
        return b"value"

    async with replica(server.url, cache=CacheBounds(follow_s=60.0)) as (cache, store, recorder):
        bulk = asyncio.create_task(cache.fetch(key(), slow, lane=Lane.BULK))
        await begun.wait()
        assert await cache.fetch(key(), making(b"value")) == (b"value", False)
        await store.written()
        assert await cache.fetch(key(), never) == (b"value", True)
        gate.set()
        assert await bulk == (b"value", False)
    assert recorder.results == ["miss", "miss", "hit"]


async def test_what_redis_holds_is_bounded_in_time_and_gives_no_key_away(server):
    async with replica(server.url, cache=CacheBounds(ttl_s=1000.0)) as (cache, _, _):
        for number in range(60):
            await fetch(cache, f"secret {number}")
    names = server.run("KEYS", "*")
    ttls_ms = [server.run("PTTL", name) for name in names]
    assert len(names) == 60
    assert all(name.startswith(b"phosphene:code:1:{") and b"secret" not in name for name in names)
    assert all(890_000 <= ttl_ms <= 1_100_000 for ttl_ms in ttls_ms)
    assert max(ttls_ms) - min(ttls_ms) > 50_000


def poison(server, kind):
    """Put something else where the value of `key()` belongs."""
    name = f"phosphene:code:1:{{{key().text()}}}"
    whole = wrap(key().digest(), value_of("00"))
    match kind:
        case "flipped":
            server.run("SET", name, whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
        case "another's":
            server.run("SET", name, wrap(key("01").digest(), value_of("01")))
        case "cut":
            server.run("SET", name, whole[:-1])
        case "another version":
            server.run("SET", name, whole[:3] + b"\x02" + whole[4:])
        case "huge":
            server.run("SETRANGE", name, 5 * 2**20, "x")
        case "a list":
            server.run("RPUSH", name, "x", "y")
        case "words":
            server.run("SET", name, "value")


POISONS = ["flipped", "another's", "cut", "another version", "huge", "a list", "words"]


@pytest.mark.parametrize("kind", POISONS)
async def test_a_poisoned_value_is_never_given_and_is_overwritten(server, kind):
    poison(server, kind)
    async with replica(server.url) as (cache, store, recorder):
        assert await cache.get(key()) is None
        await fetch(cache, "00")
        await store.written()
        assert await cache.fetch(key(), never) == (value_of("00"), True)
        assert recorder.results == ["poisoned", "poisoned", "hit"]


@pytest.mark.parametrize("text", ["a string", None])
async def test_a_poisoned_lead_leads_nobody_astray(server, text):
    name = f"phosphene:lead:1:{{{key().text()}}}"
    server.run("SET", name, text) if text else server.run("RPUSH", name, "a dead replica")
    async with replica(server.url, cache=CacheBounds(follow_s=0.01)) as (cache, store, recorder):
        await fetch(cache, "00")
        await store.written()
        assert await cache.fetch(key(), never) == (value_of("00"), True)
        assert recorder.results == ["miss", "hit"]
    assert server.run("EXISTS", name) == 0


async def test_a_cold_key_is_computed_once_across_replicas(server):
    gate, begun = asyncio.Event(), []

    async def make():
        begun.append(1)
        await gate.wait()
        return b"value"

    async with (
        replica(server.url, cache=CacheBounds(follow_s=20.0, follow_within_s=20.0)) as (ours, our_store, _),
        replica(server.url, cache=CacheBounds(follow_s=20.0, follow_within_s=20.0)) as (theirs, _, their),
    ):
        calls = [asyncio.create_task(ours.fetch(key(), make))]
        await until(lambda: begun)
        calls += [asyncio.create_task(theirs.fetch(key(), never)) for _ in range(5)]
        await until(lambda: server.run("LLEN", f"phosphene:lead:1:{{{key().text()}}}") == 2)
        gate.set()
        assert await asyncio.gather(*calls) == [(b"value", False)] + [(b"value", True)] * 5
        assert their.results == ["coalesced"] * 5
        await our_store.written()
    assert begun == [1]
    assert server.run("KEYS", "phosphene:lead:*") == []


@pytest.mark.parametrize("end", ["fails", "is cancelled", "is cut off", "hangs"])
async def test_a_leader_that_does_not_finish_wakes_who_waits(server, end):
    begun, gate = [], asyncio.Event()

    async def make():
        begun.append(1)
        await gate.wait()
        raise ValueError("broken")

    async with (
        RedisProxy(server.port) as proxy,
        replica(server.url) as (ours, _, _),
        replica(
            proxy.url,
            bounds=RedisBounds(patience_s=0.5, connect_s=10.0, probe_interval_s=3600.0),
            cache=CacheBounds(follow_s=3600.0, follow_within_s=20.0),
        ) as (theirs, _, _),
    ):
        leader = asyncio.create_task(ours.fetch(key(), make))
        await until(lambda: begun)
        follower = asyncio.create_task(theirs.fetch(key(), making(b"theirs")))
        await until(lambda: server.run("LLEN", f"phosphene:lead:1:{{{key().text()}}}") == 2)
        match end:
            case "fails":
                gate.set()
                with pytest.raises(ValueError, match="broken"):
                    await leader
            case "is cancelled":
                leader.cancel()
            case "is cut off":
                proxy.cut()
            case "hangs":
                proxy.stall()
                await fetch(theirs, "another request, whose answer is overdue")
        async with asyncio.timeout(20):
            assert await follower == (b"theirs", False)
        gate.set()
        await asyncio.wait([leader])
        assert leader.cancelled() or str(leader.exception()) == "broken"


async def test_whoever_leaves_while_it_asks_leads_nobody(server):
    lead = f"phosphene:lead:1:{{{key().text()}}}"
    async with replica(server.url) as (ours, our_store, _):
        leader = asyncio.create_task(ours.fetch(key(), never))
        # The loop stands still while the server is looked at: it has the question, and nobody has heard the answer.
        while server.run("LLEN", lead) != 1:
            await asyncio.sleep(0)
        leader.cancel()
        await asyncio.wait([leader])
        await asyncio.sleep(0)
        await our_store.written()
        assert server.run("EXISTS", lead) == 0


@pytest.mark.parametrize("seed", range(12))
async def test_two_replicas_with_failing_and_leaving_leaders_give_everybody_the_right_value(server, seed):
    """The same few cold keys from everywhere, while callers leave and computations fail."""
    choice = random.Random(seed)
    made = []

    def maker(name, fate, turns):
        async def make():
            made.append(name)
            for _ in range(turns):
                await asyncio.sleep(0)
            if fate == "fails":
                raise ValueError(name)
            return value_of(name)

        return make

    async with (
        replica(server.url, cache=CacheBounds(follow_s=0.2, follow_within_s=20.0)) as (ours, our_store, our),
        replica(server.url, cache=CacheBounds(follow_s=0.2, follow_within_s=20.0)) as (theirs, their_store, their),
    ):
        calls = []
        for _ in range(60):
            name = f"{choice.randrange(4):02d}"
            fate = choice.choice(["well", "well", "fails", "leaves"])
            make = maker(name, fate, choice.randrange(30))
            calls.append((asyncio.create_task(choice.choice([ours, theirs]).fetch(key(name), make)), name, fate))
            if fate == "leaves":
                asyncio.get_running_loop().call_later(choice.random() * 0.01, calls[-1][0].cancel)
            for _ in range(choice.randrange(4)):
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await asyncio.wait([task for task, _, _ in calls])
        for task, name, fate in calls:
            if task.cancelled():
                assert fate == "leaves"
            elif task.exception() is not None:
                assert fate == "fails"
                assert str(task.exception()) == name
            else:
                assert task.result()[0] == value_of(name)
        await our_store.written()
        await their_store.written()
        assert len(made) < 60
        assert "error" not in our.results + their.results
        for name in {name for task, name, _ in calls if not task.cancelled() and task.exception() is None}:
            assert await theirs.fetch(key(name), never) == (value_of(name), True)


FAULTS = [
    "refused",
    "stopped",
    "halted",
    "stalled",
    "slow",
    "far",
    "full",
    "read only",
    "cut once",
    "cut always",
    "corrupt",
    "restarted",
    "no scripts",
]
FAST_ANSWERS = ("full", "read only")


async def break_it(fault, server, proxy):
    match fault:
        case "refused":
            await proxy.refuse()
        case "stopped":
            server.stop()
        case "halted":
            server.process.send_signal(signal.SIGSTOP)
        case "stalled":
            proxy.stall()
        case "slow":
            proxy.delay(0.2)
        case "far":
            # Every question is answered before its patience ends, but for those that this machine holds up.
            proxy.delay(0.02)
        case "full":
            server.run("CONFIG", "SET", "maxmemory", "1")
        case "read only":
            server.run("REPLICAOF", "127.0.0.1", "1")
        case "cut once":
            proxy.cut()
        case "cut always":
            proxy.cut_everybody()
        case "corrupt":
            proxy.corrupt()
        case "restarted":
            server.stop()
            server.start()
        case "no scripts":
            server.run("ACL", "SETUSER", "default", "-eval")


async def mend_it(fault, server, proxy):
    match fault:
        case "stopped":
            server.start()
        case "halted":
            server.process.send_signal(signal.SIGCONT)
        case "full":
            server.run("CONFIG", "SET", "maxmemory", "0")
        case "read only":
            server.run("REPLICAOF", "NO", "ONE")
        case "no scripts":
            server.run("ACL", "SETUSER", "default", "+eval")
        case _:
            await proxy.heal()


async def ask_for_many(cache, limiter, names):
    async def one(name):
        await limiter.check("caller")
        await fetch(cache, name)

    async with asyncio.timeout(20):
        for at in range(0, len(names), 5):
            await asyncio.gather(*[one(name) for name in names[at : at + 5]])


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_fails_a_request_or_gives_a_wrong_value_and_hits_come_back(fault):
    with running_redis() as server:
        async with (
            RedisProxy(server.port, seed=len(fault)) as proxy,
            replica(proxy.url, bounds=PATIENT if fault in FAST_ANSWERS else BRISK) as (cache, store, recorder),
        ):
            limiter = RateLimiter(
                RateLimit(rate_per_s=1e6, burst=10**6), store=store, clock=asyncio.get_running_loop().time
            )
            await recorder.state("closed")
            warm = [f"{number:02d}" for number in range(20)]
            await ask_for_many(cache, limiter, warm)
            await break_it(fault, server, proxy)
            cold = [f"{fault} {number}" for number in range(30)]
            await ask_for_many(cache, limiter, warm + cold + warm)
            if fault in FAST_ANSWERS:
                assert store.state == "closed"
                # What Redis does not keep, this process does.
                assert await cache.fetch(key(cold[0]), never) == (value_of(cold[0]), True)
            elif fault not in ("cut once", "restarted"):
                async with asyncio.timeout(20):
                    while store.state == "closed":
                        await ask_for_many(cache, limiter, cold)
            assert len(recorder.results) >= 90
            await mend_it(fault, server, proxy)
            await recorder.state("closed")
            assert await put_and_got(cache, store, recorder)


async def put_and_got(cache, store, recorder):
    """A value gets into Redis and back; tried again where a loaded machine makes it wait longer than it may."""
    async with asyncio.timeout(20):
        for number in range(1000):
            await cache.put(key(f"after {number}"), b"value")
            await store.written()
            cache._local.put(key(f"after {number}").digest(), b"not from Redis")
            if await cache.get(key(f"after {number}")) == b"value":
                return True
            await recorder.state("closed")
    return False


def evals(server):
    """Questions and writes so far."""
    return server.run("INFO", "commandstats").get("cmdstat_eval", {"calls": 0})["calls"]


async def test_a_request_makes_one_round_trip_for_its_value_and_one_for_its_rate_limit(server):
    async with replica(server.url) as (cache, store, _):
        limiter = RateLimiter(
            RateLimit(rate_per_s=1e6, burst=10**6), store=store, clock=asyncio.get_running_loop().time, patience_s=5.0
        )
        before = evals(server)
        await fetch(cache, "00")
        await store.written()
        assert evals(server) == before + 2, "one question, one write"
        await fetch(cache, "00")
        await cache.get(key("00"))
        assert evals(server) == before + 4, "one question each"
        await limiter.check("caller")
        await fetch(cache, "00")
        assert evals(server) == before + 6


async def test_nobody_waits_for_a_write(server):
    async with RedisProxy(server.port) as proxy, replica(proxy.url) as (cache, _, recorder):

        async def make():
            proxy.stall()
            return b"value"

        async with asyncio.timeout(4):
            assert await cache.fetch(key(), make) == (b"value", False)
        assert recorder.results == ["miss"]
        assert server.run("KEYS", "phosphene:code:*") == []
        await proxy.heal()
        await until(lambda: server.run("KEYS", "phosphene:code:*"))


async def test_a_request_waits_for_another_replica_only_where_redis_is_quick(server):
    """What the other makes comes through Redis, which takes as long again."""
    begun, gate = [], asyncio.Event()

    async def make():
        begun.append(1)
        await gate.wait()
        return b"value"

    patient = CacheBounds(follow_s=3600.0, follow_within_s=0.0)
    async with replica(server.url) as (ours, _, _), replica(server.url, cache=patient) as (theirs, store, their):
        leader = asyncio.create_task(ours.fetch(key(), make))
        await until(lambda: begun)
        async with asyncio.timeout(20):
            assert await theirs.fetch(key(), making(b"value")) == (b"value", False)
        await store.written()
        assert await theirs.fetch(key(), never) == (b"value", True)
        assert their.results == ["miss", "hit"]
        gate.set()
        assert await leader == (b"value", False)


def test_what_a_request_may_lose_by_redis_is_fifty_milliseconds_in_all():
    assert RATE_PATIENCE_S + RedisBounds().patience_s <= 0.050
    assert RATE_PATIENCE_S + 2 * CacheBounds().follow_within_s <= 0.050


async def test_a_redis_that_answers_slowly_is_put_aside_and_nothing_fails(server):
    """Patience is longer than its way, so that slowness and not failure opens the circuit."""
    bounds = RedisBounds(patience_s=0.4, write_patience_s=5.0, connect_s=10.0, probe_interval_s=0.05)
    async with RedisProxy(server.port) as proxy, replica(proxy.url, bounds=bounds) as (cache, store, recorder):
        await recorder.state("closed")
        await fetch(cache, "00")
        proxy.delay(0.13)
        async with asyncio.timeout(60):
            number = 0
            while store.state == "closed":
                number += 1
                await fetch(cache, f"{number:04d}")
        # It stays aside: whoever asks now asks nobody.
        await until(lambda: "of use within" in store.reason)
        await fetch(cache, "while it is away")
        assert recorder.results[-1] == "bypassed"
        await proxy.heal()
        await recorder.state("closed")
        assert await put_and_got(cache, store, recorder)


async def test_a_redis_too_far_away_at_the_start_is_never_waited_for(server):
    async with RedisProxy(server.port) as proxy:
        proxy.delay(0.015)
        async with replica(proxy.url, bounds=BRISK) as (cache, store, recorder):
            # A machine that was held up has a probe fail before five of them are through; the next one follows.
            await until(lambda: "of use within 22.5 ms" in store.reason)
            await fetch(cache, "00")
            assert recorder.results == ["bypassed"]
            assert "closed" not in recorder.states


async def test_redis_may_be_down_at_the_start_and_come_later():
    with running_redis() as server:
        server.stop()
        async with replica(server.url, bounds=BRISK) as (cache, store, recorder):
            assert store.state == "open"
            await fetch(cache, "00")
            assert await cache.fetch(key("00"), never) == (value_of("00"), True)
            assert recorder.results == ["bypassed", "hit"]
            server.start()
            await recorder.state("closed")
            assert await put_and_got(cache, store, recorder)


async def test_what_was_kept_here_meanwhile_gets_into_redis(server):
    async with RedisProxy(server.port) as proxy, replica(proxy.url) as (cache, store, recorder):
        await proxy.refuse()
        await recorder.state("open")
        await fetch(cache, "00")
        await proxy.heal()
        await recorder.state("closed")
        assert await cache.fetch(key("00"), never) == (value_of("00"), True)
        await store.written()
        assert recorder.results == ["bypassed", "hit"]
    async with replica(server.url) as (cache, _, _):
        assert await cache.fetch(key("00"), never) == (value_of("00"), True)


async def test_a_replica_does_not_wait_for_itself(server):
    """Its claim reached Redis and the answer did not reach it."""
    async with replica(server.url, cache=CacheBounds(follow_s=3600.0, follow_within_s=20.0)) as (cache, store, _):
        server.run("RPUSH", f"phosphene:lead:1:{{{key().text()}}}", store.name)
        async with asyncio.timeout(20):
            assert await cache.fetch(key(), making(b"value")) == (b"value", False)


async def test_a_redis_that_hangs_is_asked_once_and_not_by_everybody_in_turn(server):
    async with (
        RedisProxy(server.port) as proxy,
        replica(proxy.url, bounds=RedisBounds(patience_s=0.5, connect_s=10.0, probe_interval_s=3600.0)) as (
            cache,
            store,
            recorder,
        ),
    ):
        proxy.stall()
        for number in range(20):
            await fetch(cache, f"{number:02d}")
        assert recorder.results[:5] == ["error", "bypassed", "bypassed", "bypassed", "bypassed"]
        assert store.state == "open"
        assert recorder.states == ["half_open", "closed", "open"]


async def test_nothing_written_at_the_end_is_lost(server):
    async with replica(server.url) as (cache, _, _):
        for number in range(50):
            await cache.put(key(f"{number:02d}"), value_of(f"{number:02d}"))
    assert server.run("DBSIZE") == 50


async def test_logs_tell_when_redis_goes_and_comes_and_hold_no_password(caplog):
    caplog.set_level(logging.INFO, "phosphene.service")
    with running_redis() as server:
        server.run("CONFIG", "SET", "requirepass", "s3cret")
        url = server.url.replace("//", "//:s3cret@")
        async with replica(url) as (cache, store, recorder):
            await recorder.state("closed")
            server.stop()
            await recorder.state("open")
            await fetch(cache, "00")
        async with replica(url.replace("s3cret", "wr0ng")):
            pass
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "phosphene.service"]
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["redis is used", "redis is away", "redis is away"]
    assert not any("s3cret" in line or "wr0ng" in line for line in lines)


async def test_logs_tell_once_that_redis_is_full(server, caplog):
    async with replica(server.url) as (cache, store, _):
        server.run("CONFIG", "SET", "maxmemory", "1")
        try:
            for number in range(5):
                await fetch(cache, f"{number:02d}")
            await store.written()
        finally:
            server.run("CONFIG", "SET", "maxmemory", "0")
    told = [record for record in caplog.records if record.message == "redis keeps no values"]
    assert len(told) == 1
    assert "OOM" in told[0].fields["reason"]


async def test_a_wrong_password_is_a_redis_that_is_away(server, caplog):
    server.run("CONFIG", "SET", "requirepass", "")
    async with replica(server.url.replace("//", "//:unasked@")) as (cache, store, _):
        assert store.state == "open"
        await fetch(cache, "00")
    assert any("AUTH" in str(getattr(record, "fields", "")) for record in caplog.records)


async def test_a_value_beyond_the_limit_releases_who_waits_and_is_not_kept(server):
    async with replica(server.url, cache=CacheBounds(value_limit_bytes=4)) as (cache, store, _):
        assert await cache.fetch(key(), making(b"value")) == (b"value", False)
        await store.written()
    assert server.run("DBSIZE") == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of loopback, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True,
        capture_output=True,
    )
    return folder


async def test_values_travel_over_tls_with_a_password(certificate):
    with running_redis() as server:
        for name, file in (("cert", "cert"), ("key", "key"), ("ca-cert", "cert")):
            server.run("CONFIG", "SET", f"tls-{name}-file", str(certificate / f"{file}.pem"))
        server.run("CONFIG", "SET", "tls-auth-clients", "no", "requirepass", "s3cret")
        with server.client(password="s3cret") as client:
            tls_port = free_port()
            client.config_set("tls-port", tls_port)
        url = f"rediss://:s3cret@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate / 'cert.pem'}"
        async with replica(url) as (cache, store, _):
            assert store.state == "closed"
            await fetch(cache, "00")
            await store.written()
            assert await cache.fetch(key("00"), never) == (value_of("00"), True)
        async with replica(url.partition("?")[0]) as (_, store, _):
            assert store.state == "open", "a certificate that nobody vouches for was trusted"


async def test_a_full_queue_of_writes_gives_up_writes_and_no_request(server):
    bounds = RedisBounds(patience_s=5.0, write_patience_s=5.0, connect_s=10.0, write_limit_bytes=3000)
    async with replica(server.url, bounds=bounds) as (cache, store, _):
        for number in range(10):
            await cache.put(key(f"{number:02d}"), b"x" * 1000)
        await store.written()
        assert server.run("DBSIZE") == 1
        assert len(cache._local) == 9
