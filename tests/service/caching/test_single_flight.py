import asyncio
import gc
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.caching.single_flight import SingleFlight
from service.claims import Lane


@dataclass
class Bakery:
    """Work that ends when told to, and counts itself."""

    begun: list = field(default_factory=list)
    ended: dict = field(default_factory=dict)
    cancelled: list = field(default_factory=list)

    def work(self, name):
        async def bake():
            self.begun.append(name)
            self.ended[name] = asyncio.get_running_loop().create_future()
            try:
                return await self.ended[name]
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise

        return bake


async def settle():
    """Let every task run until it waits for something of the test's."""
    for _ in range(20):
        await asyncio.sleep(0)


def call(flights, bakery, who, **how):
    return asyncio.create_task(flights.run(b"bread", bakery.work(who), bakery.work(f"{who} alone"), **how))


async def test_a_party_shares_one_work():
    bakery = Bakery()
    async with SingleFlight() as flights:
        calls = [call(flights, bakery, who) for who in ("first", "second", "third")]
        await settle()
        assert bakery.begun == ["first"]
        bakery.ended["first"].set_result("loaf")
        assert await asyncio.gather(*calls) == [("loaf", False), ("loaf", True), ("loaf", True)]
        assert len(flights) == 0


async def test_the_work_outlives_its_leader():
    bakery = Bakery()
    async with SingleFlight() as flights:
        first, second = (call(flights, bakery, who) for who in ("first", "second"))
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled()
        bakery.ended["first"].set_result("loaf")
        assert await second == ("loaf", True)
        assert bakery.begun == ["first"]


async def test_the_work_ends_with_the_last_of_its_party_and_the_next_caller_begins_anew():
    bakery = Bakery()
    async with SingleFlight() as flights:
        party = [call(flights, bakery, who) for who in ("first", "second")]
        await settle()
        for each in party:
            each.cancel()
        await settle()
        assert bakery.cancelled == ["first"]
        third = call(flights, bakery, "third")
        await settle()
        bakery.ended["third"].set_result("loaf")
        assert await third == ("loaf", False)


async def test_a_failure_is_its_leaders_own():
    bakery = Bakery()
    async with SingleFlight() as flights:
        first, second, third = (call(flights, bakery, who) for who in ("first", "second", "third"))
        await settle()
        bakery.ended["first"].set_exception(ValueError("burnt"))
        with pytest.raises(ValueError, match="burnt"):
            await first
        await settle()
        assert bakery.begun == ["first", "second"]
        bakery.ended["second"].set_exception(KeyError("cold"))
        with pytest.raises(KeyError, match="cold"):
            await second
        await settle()
        assert bakery.begun == ["first", "second", "third alone"]
        bakery.ended["third alone"].set_result("loaf")
        assert await third == ("loaf", False)


class Image:
    """What work holds."""


@pytest.mark.parametrize("has_follower", [False, True], ids=["alone", "followed"])
@pytest.mark.parametrize("turns", range(-1, 8))
async def test_a_failure_whose_leader_leaves_holds_nothing(turns, has_follower):
    """The leader leaves before it, so many turns of the event loop after it, or is told of it: 8 turns see it all."""
    images = []

    async def work():
        image = Image()
        images.append(weakref.ref(image))
        await burns.wait()
        # With the error in it, the frame and its traceback hold each other.
        error = ValueError("burnt")
        raise error

    async def ask(is_leader):
        try:
            await flights.run(b"bread", work, work)
        except ValueError as error:
            assert is_leader
            error.__traceback__ = None

    async def alone():
        return "loaf"

    gc.collect()
    gc.disable()
    try:
        async with SingleFlight() as flights:
            burns = asyncio.Event()
            leader = asyncio.create_task(ask(is_leader=True))
            await settle()
            follower = asyncio.create_task(flights.run(b"bread", alone, alone)) if has_follower else None
            await settle()
            if turns < 0:
                leader.cancel()
                await settle()
            burns.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            leader.cancel()
            await settle()
            assert leader.done()
            assert [image() for image in images] == [None]
            if follower is not None:
                assert (await follower)[0] == "loaf"
    finally:
        gc.enable()


async def test_work_that_all_have_left_holds_nothing():
    images = []

    async def work():
        image = Image()
        images.append(weakref.ref(image))
        await asyncio.get_running_loop().create_future()

    gc.collect()
    gc.disable()
    try:
        async with SingleFlight() as flights:
            party = [asyncio.create_task(flights.run(b"bread", work, work)) for _ in range(3)]
            await settle()
            for each in party:
                each.cancel()
                await settle()
            assert [each.cancelled() for each in party] == [True] * 3
            assert [image() for image in images] == [None]
    finally:
        gc.enable()


async def test_leaving_the_context_cancels_what_is_under_way():
    bakery = Bakery()
    async with SingleFlight() as flights:
        first = call(flights, bakery, "first")
        await settle()
    assert bakery.cancelled == ["first"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_interactive_work_waits_for_nothing_that_bulk_leads_and_bulk_waits_for_either():
    bakery = Bakery()
    async with SingleFlight() as flights:
        bulk = [call(flights, bakery, who, lane=Lane.BULK) for who in ("bulk", "second bulk")]
        await settle()
        interactive = [call(flights, bakery, who) for who in ("interactive", "second interactive")]
        await settle()
        third = call(flights, bakery, "third bulk", lane=Lane.BULK)
        await settle()
        assert bakery.begun == ["bulk", "interactive"]
        assert len(flights) == 2
        bakery.ended["interactive"].set_result("loaf")
        assert await asyncio.gather(*interactive, third) == [("loaf", False), ("loaf", True), ("loaf", True)]
        assert not any(each.done() for each in bulk)
        bakery.ended["bulk"].set_result("roll")
        assert await asyncio.gather(*bulk) == [("roll", False), ("roll", True)]
        assert len(flights) == 0


async def test_followers_and_nobody_else_hold_something_while_they_wait():
    bakery, held = Bakery(), []

    def holding(who):
        @contextmanager
        def hold():
            held.append(who)
            yield
            held.remove(who)

        return hold

    async with SingleFlight() as flights:
        calls = [call(flights, bakery, who, follow=holding(who)) for who in ("first", "second", "third")]
        await settle()
        assert held == ["second", "third"]
        bakery.ended["first"].set_exception(ValueError("burnt"))
        await settle()
        # The second leads now.
        assert held == ["third"]
        bakery.ended["second"].set_result("loaf")
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[0], ValueError)
        assert results[1:] == [("loaf", False), ("loaf", True)]
        assert held == []


async def test_who_may_not_wait_fails_alone():
    bakery = Bakery()

    def refuse():
        raise OverflowError("full")

    async with SingleFlight() as flights:
        first, second = call(flights, bakery, "first", follow=refuse), call(flights, bakery, "second", follow=refuse)
        with pytest.raises(OverflowError):
            await second
        bakery.ended["first"].set_result("loaf")
        assert await first == ("loaf", False)


STEPS = st.lists(
    st.tuples(st.sampled_from(["call", "cancel", "finish", "fail", "turn"]), st.integers(0, 30), st.integers(0, 2)),
    max_size=50,
)


@settings(max_examples=150)
@given(STEPS)
def test_everybody_gets_the_value_or_their_own_failure(steps):
    """Whatever happens in whatever order: no strangers' failures, no cancelled follower, nothing left behind."""
    lane_of = [Lane.BULK if which % 2 else Lane.INTERACTIVE for _, which, _ in steps]

    async def story():
        bakery, calls, cancelled = Bakery(), {}, set()
        own_failure = {}
        async with SingleFlight() as flights:
            for number, (step, which, name) in enumerate(steps):
                open_works = [work for work, end in bakery.ended.items() if not end.done()]
                match step:
                    case "call":
                        alone = (number, name, "alone")
                        calls[number] = asyncio.create_task(
                            flights.run(
                                bytes([name]), bakery.work((number, name)), bakery.work(alone), lane=lane_of[number]
                            )
                        )
                    case "cancel" if calls:
                        victim = sorted(calls)[which % len(calls)]
                        if not calls[victim].done():
                            calls[victim].cancel()
                            cancelled.add(victim)
                    case "finish" if open_works:
                        work = open_works[which % len(open_works)]
                        bakery.ended[work].set_result(work)
                    case "fail" if open_works:
                        work = open_works[which % len(open_works)]
                        own_failure[work[0]] = ValueError(work)
                        bakery.ended[work].set_exception(own_failure[work[0]])
                    case _:
                        await asyncio.sleep(0)
            for _ in range(200):
                await asyncio.sleep(0)
                for work, end in list(bakery.ended.items()):
                    if not end.done():
                        end.set_result(work)
            async with asyncio.timeout(20):
                await asyncio.wait(calls.values()) if calls else None
            assert len(flights) == 0
        for number, task in calls.items():
            if task.cancelled():
                assert number in cancelled
            elif (error := task.exception()) is not None:
                assert error is own_failure[number]
            else:
                worker, name, *_ = task.result()[0]
                assert name == steps[number][2]
                assert lane_of[number] is Lane.BULK or lane_of[worker] is Lane.INTERACTIVE
        # Nobody works twice for himself, except after two others have failed him.
        assert len(bakery.begun) == len(set(bakery.begun))

    asyncio.run(story())
