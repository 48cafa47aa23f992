"""The switch of generations: leases hold, broken ones change nothing, old ones close when their last answer is made."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from phosphene.errors import ArtefactDamaged, ReloadUnderWay, Unavailable
from service.catalogue import Catalogue
from service.generations import Generations
from tests.fakes import FakeEngine, FakeReader, fake_entry, png


class Shop:
    """Opens a new catalogue each time, and keeps the books."""

    def __init__(self):
        self.opened, self.closed, self.warmed, self.served = [], [], [], []
        self.next_id, self.tombstones_id = "1" * 64, ""
        self.is_broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def __call__(self, before):
        await self.gate.wait()
        if self.is_broken:
            raise ArtefactDamaged("file index.faiss differs from its manifest")
        reader = FakeReader({"red-1": png((250, 10, 10))})
        reader.id, reader.tombstones_id = self.next_id, self.tombstones_id
        reader.take_down_ids = frozenset({self.tombstones_id} - {""})
        catalogue = Catalogue([fake_entry(FakeEngine(), reader=reader)])
        self.opened.append(catalogue.id)
        yield catalogue
        self.closed.append(catalogue.id)

    async def warm(self, catalogue):
        self.warmed.append(catalogue.id)

    def generations(self):
        return Generations(self, self.warm, lambda catalogue: self.served.append(catalogue.id))


async def test_nothing_answers_before_the_first_load():
    async with Shop().generations() as generations:
        with pytest.raises(Unavailable, match="loading"), generations.lease():
            pass


async def test_a_lease_holds_its_generation_until_it_ends():
    shop = Shop()
    async with shop.generations() as generations:
        assert await generations.load()
        with generations.lease() as old:
            shop.next_id = "2" * 64
            assert await generations.load()
            with generations.lease() as new:
                assert new.id != old.id
            assert shop.warmed == shop.served == [old.id, new.id]
            assert not shop.closed
        await settle()
        assert shop.closed == [old.id]
    assert shop.closed == [old.id, new.id]


async def test_what_has_not_changed_is_not_switched():
    shop = Shop()
    async with shop.generations() as generations:
        await generations.load()
        before = generations.current
        assert not await generations.load()
        assert generations.current is before
        assert len(shop.closed) == 1
        assert len(shop.served) == 1


@pytest.mark.parametrize("fault", ["open", "warm"])
async def test_a_broken_generation_changes_nothing(fault):
    shop = Shop()
    async with shop.generations() as generations:
        await generations.load()
        before = generations.current
        shop.next_id = "2" * 64
        if fault == "open":
            shop.is_broken = True
        else:

            async def fail(catalogue):
                raise ArtefactDamaged("cold")

            generations._warm = fail
        with pytest.raises(ArtefactDamaged):
            await generations.load()
        assert generations.current is before
        assert len(shop.opened) - len(shop.closed) == 1
        # And the next one may come.
        shop.is_broken, generations._warm = False, shop.warm
        assert await generations.load()


async def test_a_take_down_is_answered_when_the_last_answer_from_before_is_made():
    shop = Shop()
    async with shop.generations() as generations:
        await generations.load()
        with generations.lease() as first:
            shop.next_id = "2" * 64
            assert await generations.load()
            with generations.lease() as second:
                shop.tombstones_id = "d" * 64
                taking_down = asyncio.create_task(generations.load())
                await settle()
                with generations.lease() as third:
                    assert len({first.id, second.id, third.id}) == 3
                    assert all(generations.is_outdated(each) for each in first.generation_ids | second.generation_ids)
                    assert not any(generations.is_outdated(each) for each in third.generation_ids)
                assert not taking_down.done()
                # It has switched, so another one may come; its answer promises no less.
                again = asyncio.create_task(generations.load())
                await settle()
                assert not again.done()
            await settle()
            assert not taking_down.done()
            assert not again.done()
        assert await taking_down
        assert not await again
        # Back to what was served before is no take-down, and its answers are good again.
        shop.tombstones_id = ""
        with generations.lease():
            assert await generations.load()
        assert not any(generations.is_outdated(each) for each in second.generation_ids)


async def test_a_take_down_whose_caller_left_is_still_waited_for():
    """The deadline of a reload passes; the one that asks again gets the promise, not an early answer."""
    shop = Shop()
    async with shop.generations() as generations:
        await generations.load()
        with generations.lease():
            shop.tombstones_id = "d" * 64
            left = asyncio.create_task(generations.load())
            await settle()
            left.cancel()
            again = asyncio.create_task(generations.load())
            await settle()
            assert left.cancelled()
            assert not again.done()
        assert not await again
        # Nothing is left to wait for.
        assert not await generations.load()


async def test_a_reload_that_takes_nothing_down_waits_for_nobody():
    shop = Shop()
    async with shop.generations() as generations:
        await generations.load()
        with generations.lease():
            shop.next_id = "2" * 64
            assert await generations.load()
            assert not await generations.load()


async def test_one_reload_at_a_time():
    shop = Shop()
    async with shop.generations() as generations:
        await generations.load()
        shop.gate.clear()
        shop.next_id = "2" * 64
        first = asyncio.create_task(generations.load())
        await settle()
        with pytest.raises(ReloadUnderWay):
            await generations.load()
        shop.gate.set()
        assert await first


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)
