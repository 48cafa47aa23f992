"""Under load, cancels, deadlines, reloads, poison and a Redis that comes and goes, every answer is of its own image."""

import asyncio
import random
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from phosphene.v1 import admin_pb2, admin_pb2_grpc
from tests.service.caching.redis_proxy import RedisProxy
from tests.service.caching.redis_server import running_redis
from tests.service.fingerprints import Worlds
from tests.service.own_process import own_process
from tests.service.swarm import Mix, Swarm


@asynccontextmanager
async def swarming(mix, **variables):
    """A service over two generations, callers of it, and what reloads it; it reports no defects but poison."""
    async with own_process(PHOSPHENE_QUEUE_IMAGES="512", PHOSPHENE_BATCH_IMAGES="16", **variables) as process:
        address, _, admin = await process.addresses()
        async with (
            grpc.aio.insecure_channel(str(admin)) as channel,
            Swarm(address, Worlds().both, mix) as swarm,
        ):
            yield admin_pb2_grpc.AdminServiceStub(channel), swarm
        defects = [raw for raw, event in zip(process.raw, process.events, strict=True) if event == "defect"]
        assert not [raw for raw in defects if b"secret path /etc/engine exploded" not in raw]


@asynccontextmanager
async def meanwhile(work):
    """Do something again and again until left."""
    doing = asyncio.create_task(work())
    try:
        yield
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        assert doing.cancelled(), doing


async def reload_every(operator, pause_s):
    while True:
        assert (await operator.Reload(admin_pb2.ReloadRequest())).switched
        await asyncio.sleep(pause_s)


async def break_in_turns(proxy, pause_s, dice):
    """One fault after another, each for a while."""
    while True:
        match dice.choice(["refuse", "stall", "delay", "cut", "cut everybody", "corrupt"]):
            case "refuse":
                await proxy.refuse()
            case "stall":
                proxy.stall()
            case "delay":
                proxy.delay(0.06)
            case "cut":
                proxy.cut()
            case "cut everybody":
                proxy.cut_everybody()
            case "corrupt":
                proxy.corrupt(0.5)
        await asyncio.sleep(pause_s)
        await proxy.heal()
        await asyncio.sleep(pause_s)


def check(told, least_share=0.7):
    """No mix-up, no surprise, and answers enough that both mean something."""
    assert not told.mixed
    assert not told.wrong
    assert told.answer_count >= least_share * told.request_count, told


@pytest.mark.parametrize("count", [2500, pytest.param(25_000, marks=pytest.mark.slow)])
async def test_without_a_cache(count):
    async with swarming(Mix(pictures=400, digests=0.0), PHOSPHENE_CACHE_BYTES="0") as (operator, swarm):
        async with meanwhile(lambda: reload_every(operator, 0.2)):
            await swarm.ask(count, singles=24, streams=2)
        check(swarm.told)


@pytest.mark.parametrize("count", [2500, pytest.param(25_000, marks=pytest.mark.slow)])
async def test_with_the_cache_in_this_process(count):
    # Room for some hundred of 4000 codes, so that some are thrown out while others are asked for.
    async with swarming(Mix(pictures=2000), PHOSPHENE_CACHE_BYTES="65536") as (operator, swarm):
        async with meanwhile(lambda: reload_every(operator, 0.5)):
            await swarm.ask(count, singles=24, streams=2)
        check(swarm.told)


@pytest.mark.parametrize("count", [5000, pytest.param(50_000, marks=pytest.mark.slow)])
async def test_with_a_redis_that_comes_and_goes(count):
    with running_redis() as redis:
        async with (
            RedisProxy(redis.port) as proxy,
            swarming(Mix(pictures=300), PHOSPHENE_REDIS_URL=proxy.url) as (operator, swarm),
        ):
            async with (
                meanwhile(lambda: reload_every(operator, 1.0)),
                meanwhile(lambda: break_in_turns(proxy, 0.3, random.Random(1))),
            ):
                await swarm.ask(count, singles=24, streams=2)
            check(swarm.told)
