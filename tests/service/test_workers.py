import asyncio
import threading

import pytest

from phosphene.errors import DeadlineExpired, Overloaded, Unavailable
from service.claims import Claim, Lane
from service.workers import WorkerPool

ANN, BOB, CARL, DORA = (Claim(caller=name) for name in ("ann", "bob", "carl", "dora"))


def pool(*, worker_count=1, queue_limit=2, clock=lambda: 0.0, on_dropped=lambda cause: None):
    return WorkerPool(
        worker_count=worker_count,
        queue_limit=queue_limit,
        clock=clock,
        what="images wait",
        setting="PHOSPHENE_X",
        on_dropped=on_dropped,
    )


class Held:
    """Holds the only worker until told."""

    def __init__(self, workers):
        self._gate, begun = threading.Event(), threading.Event()

        def hold():
            begun.set()
            return self._gate.wait(30)

        self.call = asyncio.create_task(workers.run(CARL, hold))
        self._begun = begun

    async def begun(self):
        await asyncio.sleep(0)
        await asyncio.to_thread(self._begun.wait, 30)
        return self

    def end(self):
        self._gate.set()


async def test_it_calls_in_another_thread_and_gives_results_and_errors():
    async with pool() as workers:
        assert await workers.run(ANN, threading.get_ident) != threading.get_ident()
        with pytest.raises(KeyError):
            await workers.run(ANN, lambda: {}["x"])
        with pytest.raises(RuntimeError):
            await workers.run(ANN, lambda: next(iter(())))
        assert await workers.run(ANN, lambda: None) is None
        assert workers.held_count == 0


async def test_a_full_pool_refuses_at_once_and_recovers():
    gate = threading.Event()
    async with pool() as workers:
        tasks = [asyncio.create_task(workers.run(ANN, lambda: gate.wait(30))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 images wait, the limit \\(PHOSPHENE_X\\)") as caught:
            await workers.run(BOB, gate.wait)
        assert caught.value.retry_after_s > 0
        gate.set()
        assert await asyncio.gather(*tasks) == [True, True]
        assert await workers.run(ANN, lambda: 5) == 5


async def test_one_caller_leaves_room_for_the_others():
    async with pool(queue_limit=8) as workers:
        held = await Held(workers).begun()
        flood = [asyncio.create_task(workers.run(ANN, lambda: None)) for _ in range(20)]
        await asyncio.sleep(0)
        other = asyncio.create_task(workers.run(BOB, lambda: "other"))
        await asyncio.sleep(0)
        held.end()
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert results[:6] == [None] * 6
        assert all(
            str(refusal).startswith("6 images wait, the limit for one caller (three quarters of PHOSPHENE_X)")
            for refusal in results[6:]
        )
        assert await other == "other"
        await held.call


async def test_callers_and_lanes_take_turns():
    order = []
    async with pool(queue_limit=100) as workers:
        held = await Held(workers).begun()
        calls = []
        for claim in (Claim(caller="bulk", lane=Lane.BULK), ANN, BOB):
            for number in range(4):
                name = f"{claim.caller} {number}"
                calls.append(asyncio.create_task(workers.run(claim, lambda name=name: order.append(name))))
                await asyncio.sleep(0)
        held.end()
        await asyncio.gather(*calls, held.call)
    interactive = [name for name in order if not name.startswith("bulk")]
    assert interactive == [f"{caller} {number}" for number in range(4) for caller in ("ann", "bob")]
    # A quarter of the turns while both lanes wait.
    assert sum(name.startswith("bulk") for name in order[:8]) == 2


async def test_cancelled_work_never_begins_and_running_work_keeps_its_place_until_it_ends():
    ended = []
    async with pool() as workers:
        held = await Held(workers).begun()
        waiting = asyncio.create_task(workers.run(ANN, lambda: ended.append(1)))
        await asyncio.sleep(0)
        held.call.cancel()
        waiting.cancel()
        await asyncio.gather(held.call, waiting, return_exceptions=True)
        assert workers.held_count == 1
        held.end()
        await workers.run(ANN, lambda: None)
        assert workers.held_count == 0
    assert not ended


async def test_expired_work_never_begins():
    async with pool(clock=lambda: 10.0) as workers:
        with pytest.raises(DeadlineExpired, match="while images wait"):
            await workers.run(Claim(deadline_s=9.0), lambda: pytest.fail("ran"))
        assert await workers.run(Claim(deadline_s=11.0), lambda: 1) == 1


async def test_what_never_began_is_told_with_its_cause():
    causes = []
    async with pool(queue_limit=8, clock=lambda: 10.0, on_dropped=causes.append) as workers:
        held = await Held(workers).begun()
        leaving = asyncio.create_task(workers.run(ANN, lambda: pytest.fail("ran")))
        late = asyncio.create_task(workers.run(Claim(caller="bob", deadline_s=9.0), lambda: pytest.fail("ran")))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait((leaving,))
        assert causes == ["cancelled"]
        held.end()
        with pytest.raises(DeadlineExpired):
            await late
        await held.call
        assert causes == ["cancelled", "expired"]
        held = await Held(workers).begun()
        waiting = asyncio.create_task(workers.run(ANN, lambda: pytest.fail("ran")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(workers.__aexit__(None, None, None))
        with pytest.raises(Unavailable):
            await waiting
        held.end()
        await asyncio.gather(closing, held.call)
    assert causes == ["cancelled", "expired", "closed"]


async def test_a_reserved_place_is_not_refused_after_the_work_before_it():
    async with pool() as workers:
        with workers.place(ANN) as place, workers.place(BOB) as another:
            place.reserve()
            another.reserve()
            another.reserve()
            assert workers.held_count == 2
            with workers.place(CARL) as third, pytest.raises(Overloaded, match="2 images wait or will, the limit"):
                third.reserve()
            # Who has nothing to do before is not kept out by those who have, and keeps none of them out.
            held = await Held(workers).begun()
            waiting = asyncio.create_task(workers.run(DORA, lambda: 1))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="2 images wait, the limit"):
                await workers.run(DORA, lambda: 1)
            calls = [asyncio.create_task(each.run(lambda: 2)) for each in (place, another)]
            await asyncio.sleep(0)
            held.end()
            assert await asyncio.gather(waiting, *calls) == [1, 2, 2]
            await held.call
            # The place is kept for another call.
            assert workers.held_count == 2
            assert await place.run(lambda: 3) == 3
        assert workers.held_count == 0


async def test_a_place_that_was_left_takes_nothing():
    async with pool() as workers:
        with workers.place(ANN) as place:
            pass
        place.reserve()
        assert workers.held_count == 0


async def test_what_waits_when_the_pool_closes_is_refused():
    ran = []
    async with pool(queue_limit=8) as workers:
        held = await Held(workers).begun()
        waiting = asyncio.create_task(workers.run(ANN, lambda: ran.append(1)))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(held.end)
    with pytest.raises(Unavailable):
        await waiting
    assert await held.call is True
    with pytest.raises(Unavailable):
        await workers.run(ANN, lambda: ran.append(2))
    assert not ran
    assert workers.held_count == 0


async def test_every_call_is_answered_once_whatever_the_threads_do():
    async with pool(worker_count=4, queue_limit=1000) as workers:
        claims = [Claim(caller=f"caller {number % 7}") for number in range(700)]
        calls = [
            asyncio.create_task(workers.run(claim, lambda number=number: number)) for number, claim in enumerate(claims)
        ]
        await asyncio.sleep(0)
        for call in calls[::10]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(result == number for number, result in enumerate(results) if number % 10)
    assert workers.held_count == 0
