import asyncio

import pytest

from service.batching.stall import StallWatch

LIMIT_S = 0.001


class Bench:
    """A watch whose clock is set by hand; its timers are the loop's."""

    def __init__(self):
        self.now_s, self.told = 0.0, []
        self.watch = StallWatch(limit_s=LIMIT_S, clock=lambda: self.now_s, on_changed=self.told.append)

    async def timers(self):
        """Until every timer of the watch that is due has run: the loop runs timers in the order of their times."""
        await asyncio.sleep(2 * LIMIT_S)


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    bench.watch.close()


async def test_work_without_a_success_is_a_stall_and_a_success_ends_it(bench):
    bench.watch.busy()
    bench.now_s += 1
    await bench.timers()
    assert bench.told == [True]
    assert bench.watch.is_stalled
    bench.watch.succeeded()
    assert bench.told == [True, False]
    bench.now_s += 1
    await bench.timers()
    assert bench.told == [True, False, True]


async def test_idle_time_is_no_stall(bench):
    bench.watch.busy()
    bench.watch.idle()
    bench.now_s += 1
    await bench.timers()
    bench.watch.busy()
    await bench.timers()
    assert bench.told == []


async def test_time_with_work_adds_up_over_failures(bench):
    for _ in range(4):
        bench.watch.busy()
        bench.now_s += 0.3 * LIMIT_S
        bench.watch.idle()
        bench.now_s += 1
    await bench.timers()
    assert bench.told == [True]


async def test_a_success_starts_the_count_anew(bench):
    bench.watch.busy()
    for _ in range(5):
        bench.now_s += 0.9 * LIMIT_S
        bench.watch.succeeded()
        await bench.timers()
    assert bench.told == []


async def test_a_watch_that_is_closed_tells_nothing(bench):
    bench.watch.busy()
    bench.now_s += 1
    bench.watch.close()
    await bench.timers()
    assert bench.told == []
