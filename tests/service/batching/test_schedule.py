import asyncio

import pytest

from service.batching.schedule import Schedule
from service.batching.work import Operation, Work
from service.claims import Claim, Lane


class Bench:
    """A schedule whose clock is set by hand, on a device of 20 ms and 5 ms for each image, 10 ms for any texts."""

    def __init__(self, **options):
        self.now_s = 0.0
        self.schedule = Schedule(batch_limit=16, bulk_share=0.25, clock=lambda: self.now_s, **options)
        self.image = Operation("encode", lambda items: lambda: items, place_cost=12.0)
        self.text = Operation("text", lambda items: lambda: items)

    def put(self, operation, count, *, lane=Lane.INTERACTIVE, deadline_s=None):
        cost, loop = operation.place_cost, asyncio.get_running_loop()
        claim = Claim(lane=lane, deadline_s=deadline_s)
        works = [Work(operation, number, claim, cost, self.now_s, loop.create_future()) for number in range(count)]
        for work in works:
            self.schedule.put(work)
        return works

    def run(self):
        flight = self.schedule.launch([])
        count = len(flight.works)
        self.now_s += 0.010 if flight.operation is self.text else 0.020 + 0.005 * count
        self.schedule.answered(flight)
        return count


@pytest.mark.parametrize("text_count", [0, 3])
async def test_texts_in_between_do_not_spoil_the_estimate_for_images(text_count):
    bench = Bench()
    for _ in range(20):
        for count in (1, 16, 5):
            bench.put(bench.image, count)
            bench.run()
            for _ in range(text_count):
                bench.put(bench.text, 1)
                bench.run()
    bench.put(bench.image, 24)
    assert bench.schedule.answer_s(Claim(), 12.0) == pytest.approx(0.2, rel=0.3)


async def test_launching_tells_what_nobody_wants():
    bench = Bench()
    gone, late, fine = (
        bench.put(bench.image, 1)[0],
        bench.put(bench.image, 1, deadline_s=1.0)[0],
        bench.put(bench.image, 1)[0],
    )
    gone.answer.cancel()
    bench.now_s = 1.0
    dropped = []
    flight = bench.schedule.launch(dropped)
    assert (flight.works, dropped) == ([fine], [gone, late])
    assert bench.schedule.launch([]) is None


async def test_abandoning_takes_out_everything_once():
    bench = Bench()
    works = bench.put(bench.image, 20)
    running = bench.schedule.launch([])
    assert bench.schedule.failed(running)
    bench.schedule.launch([])
    left = bench.schedule.abandon()
    assert sorted(left, key=id) == sorted(works, key=id)
    assert bench.schedule.is_idle
    assert not bench.schedule.can_launch()
