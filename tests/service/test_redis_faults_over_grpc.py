"""Whatever becomes of Redis, every request is answered, and rightly; once it is back, so are its hits."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import pytest

from phosphene.v1 import service_pb2_grpc
from service.caching.envelope import wrap
from tests.service.caching.redis_proxy import RedisProxy
from tests.service.caching.redis_server import RedisServer, free_port, running_redis
from tests.service.fingerprints import Worlds, by_bytes, by_digest, is_of, picture
from tests.service.own_process import own_process
from tests.service.scraping import page

CALLERS = 8
_HANG_S = 60


class Asked:
    """A service on Redis, through a proxy, and callers who count on every answer."""

    def __init__(self, redis, proxy, replicas):
        self.redis = redis
        self.proxy = proxy
        self._replicas = replicas
        self._number = 0

    async def new(self, count):
        """Ask the first replica for images that nobody has seen; they."""
        asked = [picture(self._number + number) for number in range(count)]
        self._number += count
        await self.again(asked)
        return asked

    async def again(self, asked, replica=0):
        """Ask for these, some at a time."""
        room = asyncio.Semaphore(CALLERS)

        async def ask(one):
            async with room:
                answer = await self._replicas[replica].stub.Explain(by_bytes(one), timeout=_HANG_S)
            assert is_of(answer, one, Worlds().both)

        await asyncio.gather(*map(ask, asked))

    async def results(self, replica=0):
        """What the cache of a replica has said so far, by kind."""
        found = await page(self._replicas[replica].metrics)
        kinds = ("hit", "miss", "coalesced", "poisoned", "error", "bypassed")
        return {kind: found[f'phosphene_cache_results_total{{result="{kind}"}}'] for kind in kinds}

    async def circuit(self, state, replica=0):
        """Wait until the circuit of a replica is in this state."""
        async with asyncio.timeout(_HANG_S):
            while not (await page(self._replicas[replica].metrics))[f'phosphene_circuit_state{{state="{state}"}}']:
                pass

    async def hits(self, asked, replica=0):
        """Ask for what Redis should have; how many it did."""
        before = (await self.results(replica))["hit"]
        await self.again(asked, replica)
        return (await self.results(replica))["hit"] - before

    async def comes_back(self):
        """Redis is asked again, and keeps and gives."""
        await self.circuit("closed")
        asked = await self.new(20)
        # A loaded machine may answer later than a request waits, so not each of them must hit.
        async with asyncio.timeout(_HANG_S):
            while await self.hits(asked) < len(asked):
                pass


class Replica:
    """One process of the service."""

    @asynccontextmanager
    async def running(self, url):
        async with own_process(PHOSPHENE_REDIS_URL=url, PHOSPHENE_CACHE_BYTES="1000000") as process:
            address, self.metrics, _ = await process.addresses()
            async with grpc.aio.insecure_channel(str(address)) as channel:
                self.stub = service_pb2_grpc.PhospheneServiceStub(channel)
                yield self


@asynccontextmanager
async def asking(redis, *, replica_count=1):
    async with AsyncExitStack() as lifetimes:
        proxy = await lifetimes.enter_async_context(RedisProxy(redis.port))
        replicas = [await lifetimes.enter_async_context(Replica().running(proxy.url)) for _ in range(replica_count)]
        yield Asked(redis, proxy, replicas)


@pytest.fixture
def redis():
    with running_redis() as server:
        yield server


async def test_down_at_start_is_served_and_found_when_it_comes():
    server = RedisServer(port=free_port())
    try:
        async with asking(server) as asked:
            await asked.new(60)
            results = await asked.results()
            assert results["bypassed"] == 60
            server.start()
            await asked.comes_back()
    finally:
        server.stop()


async def test_poison_is_no_answer_and_is_overwritten(redis):
    async with asking(redis, replica_count=2) as asked:
        seen = await asked.new(20)
        with redis.client() as client:
            keys = client.keys("phosphene:code:*")
            assert len(keys) == 20
            first, second, third, *others = keys
            whole = client.get(first)
            client.set(second, whole)
            client.set(third, b"x" * 10)
            for number, key in enumerate(others):
                value = bytearray(client.get(key))
                value[number * len(value) // len(others)] ^= 1 << number % 8
                client.set(key, bytes(value))
        await asked.again(seen, replica=1)
        assert (await asked.results(1))["poisoned"] >= 10
        async with asyncio.timeout(_HANG_S):
            while await asked.hits(seen, replica=1) < 20:
                pass


async def test_a_value_that_is_whole_and_no_code_is_no_answer(redis):
    """As another version might write it: its envelope is right and what is in it is not."""
    async with asking(redis) as asked:
        seen = await asked.new(4)
        with redis.client() as client:
            for number, key in enumerate(client.keys("phosphene:code:*")):
                digest = client.get(key)
                payload = [b"", b"no code", bytes(100), digest[-40:]][number]
                client.set(key, wrap(_digest(digest), payload))
        await asked.again(seen)
        stub = asked._replicas[0].stub
        for one in seen:
            assert is_of(await stub.Explain(by_digest(one), timeout=_HANG_S), one, Worlds().both)


def _digest(value):
    """The digest of the key, which the envelope holds."""
    return next(
        value[at : at + 32] for at in range(len(value)) if wrap(value[at : at + 32], b"")[: at + 32] == value[: at + 32]
    )


async def test_a_full_redis_and_a_replica_of_another(redis):
    async with asking(redis) as asked:
        seen = await asked.new(10)
        used = redis.run("INFO", "memory")["used_memory"]
        redis.run("CONFIG", "SET", "maxmemory", used // 2)
        await asked.again(seen)
        kept_here = await asked.new(40)
        assert await asked.hits(kept_here) == 40
        redis.run("CONFIG", "SET", "maxmemory", 0)
        redis.run("REPLICAOF", "127.0.0.1", str(free_port()))
        await asked.again(await asked.new(40))
        redis.run("REPLICAOF", "NO", "ONE")
        await asked.comes_back()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuse", "stall", "delay", "far", "cut_everybody", "corrupt", "restart"])
async def test_every_fault_is_survived_and_over_when_it_is_over(redis, fault):
    async with asking(redis) as asked:
        await asked.new(20)
        match fault:
            case "refuse":
                await asked.proxy.refuse()
            case "stall":
                asked.proxy.stall()
            case "delay":
                asked.proxy.delay(0.2)
            case "far":
                asked.proxy.delay(0.02)
            case "cut_everybody":
                asked.proxy.cut_everybody()
            case "corrupt":
                asked.proxy.corrupt()
            case "restart":
                redis.stop()
        seen = await asked.new(100)
        await asked.again(seen)
        if fault == "restart":
            redis.start()
        await asked.proxy.heal()
        await asked.comes_back()
