import asyncio
import threading

import pytest

from phosphene.errors import DeadlineExpired, Overloaded
from service.workers import WorkerPool


def pool(*, worker_count=1, queue_limit=2, clock=lambda: 0.0):
    return WorkerPool(
        worker_count=worker_count, queue_limit=queue_limit, clock=clock, what="images wait", setting="PHOSPHENE_X"
    )


async def test_it_calls_in_another_thread_and_passes_arguments_results_and_errors():
    async with pool() as workers:
        assert await workers.run(lambda a, *, b: (a + b, threading.get_ident()), None, 1, b=2) != (
            3,
            threading.get_ident(),
        )
        with pytest.raises(KeyError):
            await workers.run({}.__getitem__, None, "x")
        assert workers.held_count == 0


async def test_a_full_pool_refuses_at_once_and_recovers():
    gate = threading.Event()
    async with pool() as workers:
        tasks = [asyncio.create_task(workers.run(gate.wait, None, 30)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 images wait, the limit \\(PHOSPHENE_X\\)") as caught:
            await workers.run(gate.wait, None)
        assert caught.value.retry_after_s > 0
        gate.set()
        assert await asyncio.gather(*tasks) == [True, True]
        assert await workers.run(lambda: 5, None) == 5


async def test_cancelled_work_never_begins_and_running_work_keeps_its_place_until_it_ends():
    gate, begun, ended = threading.Event(), threading.Event(), []
    async with pool() as workers:

        def hold():
            begun.set()
            gate.wait(30)

        running = asyncio.create_task(workers.run(hold, None))
        waiting = asyncio.create_task(workers.run(ended.append, None, 1))
        await asyncio.to_thread(begun.wait, 30)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        await asyncio.sleep(0)
        assert workers.held_count == 1
        gate.set()
        await workers.run(lambda: None, None)
        assert workers.held_count == 0
    assert not ended


async def test_expired_work_never_begins():
    async with pool(clock=lambda: 10.0) as workers:
        with pytest.raises(DeadlineExpired, match="while images wait"):
            await workers.run(lambda: pytest.fail("ran"), 9.0)
        assert await workers.run(lambda: 1, 11.0) == 1
