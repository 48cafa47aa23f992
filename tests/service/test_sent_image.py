"""Many requests for one image: how many are in hand, and that they leave its leader's place alone."""

import asyncio
from dataclasses import replace

import pytest

from phosphene.errors import DeadlineExpired, Overloaded
from service.caching.cache import CodeCache, Places
from service.caching.local_cache import LocalCache
from service.claims import Claim
from service.sent_image import SentImage
from service.workers import WorkerPool
from tests.service.batching.test_admission import PLENTY, Desk
from tests.service.caching.redis_server import Recorder
from tests.service.caching.test_cache import key


async def test_duplicates_are_bounded_and_do_not_crowd_out_the_one_that_they_wait_for():
    """All in one turn of the loop: the leader's work has not begun when the others come."""
    desk = Desk(replace(PLENTY, images=8))
    gate, made = asyncio.Event(), []
    async with (
        CodeCache(local=LocalCache(limit_bytes=1000), store=None, events=Recorder()) as cache,
        WorkerPool(worker_count=1, queue_limit=8, clock=lambda: 0.0, what="wait", setting="X") as lookups,
    ):

        async def ask(number):
            claim = Claim(caller="a")
            with (
                lookups.place(claim) as place,
                SentImage(b"12345", "0", claim=claim, admission=desk.admission, place=place) as sent,
            ):
                assert isinstance(sent, Places)

                async def make():
                    with sent.admit(pixel_count=0, cost=1.0):
                        sent.reserve_lookup()
                        made.append(number)
                        await gate.wait()
                    return b"value"

                value, _ = await cache.fetch(key(), make, places=sent)
                return value

        calls = [asyncio.create_task(ask(number)) for number in range(100)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert desk.events.held == (6, 30, 0)
        assert lookups.held_count == 6
        assert sum(call.done() for call in calls) == 94
        gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert lookups.held_count == 0
    assert results[:6] == [b"value"] * 6
    assert all(isinstance(result, Overloaded) for result in results[6:])
    assert made == [0]
    assert desk.events.held == (0, 0, 0)


async def test_a_leader_that_leaves_gives_its_room_back_and_its_followers_keep_theirs():
    desk = Desk(replace(PLENTY, images=8))
    gate = asyncio.Event()
    async with CodeCache(local=LocalCache(limit_bytes=1000), store=None, events=Recorder()) as cache:

        async def ask():
            claim = Claim(caller="a")
            with SentImage(b"12345", "0", claim=claim, admission=desk.admission, place=None) as sent:

                async def make():
                    with sent.admit(pixel_count=0, cost=1.0):
                        await gate.wait()
                    return b"value"

                return await cache.fetch(key(), make, places=sent)

        leader, follower, another = (asyncio.create_task(ask()) for _ in range(3))
        await asyncio.sleep(0)
        leader.cancel()
        another.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        # The work goes on for the follower: both are in hand.
        assert desk.events.held == (2, 10, 0)
        gate.set()
        assert await follower == (b"value", True)
    assert desk.events.held == (0, 0, 0)


def test_an_image_whose_request_has_left_is_counted_anew():
    desk = Desk(replace(PLENTY, images=8))
    with SentImage(b"12345", "0", claim=Claim(caller="a"), admission=desk.admission, place=None) as sent:
        sent.lead()
        assert desk.events.held == (1, 5, 0)
    assert desk.events.held == (0, 0, 0)
    with sent.admit(pixel_count=3, cost=1.0):
        assert desk.events.held == (1, 5, 3)
    assert desk.events.held == (0, 0, 0)


def test_an_image_that_is_refused_gives_its_room_back_at_once():
    desk = Desk(replace(PLENTY, images=8))
    with SentImage(b"12345", "0", claim=Claim(deadline_s=-1.0), admission=desk.admission, place=None) as sent:
        sent.lead()
        with pytest.raises(DeadlineExpired):
            sent.admit(pixel_count=3, cost=1.0)
        assert desk.events.held == (0, 0, 0)
