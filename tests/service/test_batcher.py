import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import DeadlineExpired, Overloaded
from service.batcher import Batcher, Lane, SilentEvents, retry_after_s


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@dataclass
class Device:
    """A lane whose runs can be held; it squares numbers, and breaks on the poisoned ones."""

    poison: frozenset = frozenset()
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list = field(default_factory=list)
    threads: set = field(default_factory=set)

    def lane(self, name="square"):
        return Lane(name, self.run)

    def run(self, items):
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(30)
        bad = self.poison & set(items)
        if bad:
            raise ValueError(f"poison {sorted(bad)}")
        return [item * item for item in items]


@dataclass
class Recorder(SilentEvents):
    drops: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    depths: list = field(default_factory=list)

    def batch_done(self, *, lane, size, queue_s, engine_s):
        assert len(queue_s) == size
        self.sizes.append(size)

    def dropped(self, cause):
        self.drops.append(cause)

    def depth_changed(self, depth):
        self.depths.append(depth)


def batcher(clock=None, *, queue_limit=1000, batch_limit=8, events=None):
    return Batcher(queue_limit=queue_limit, batch_limit=batch_limit, clock=clock or Clock(), events=events)


async def entered(device):
    """Wait until the engine thread is inside the lane."""
    await asyncio.to_thread(device.entered.acquire)


async def submitted(coroutines):
    """Start calls and let each put its item into the queue."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


async def test_an_idle_engine_answers_at_once_and_a_busy_one_batches():
    device, events = Device(), Recorder()
    async with batcher(events=events) as queue:
        lane = device.lane()
        (first,) = await submitted([queue.run(lane, 0)])
        await entered(device)
        rest = await submitted([queue.run(lane, item) for item in range(1, 12)])
        assert queue.depth == 11
        device.gate.set()
        assert await asyncio.gather(first, *rest) == [item * item for item in range(12)]
    assert device.batches == [[0], list(range(1, 9)), [9, 10, 11]]
    assert events.sizes == [1, 8, 3]
    assert events.depths[-1] == 0
    assert len(device.threads) == 1


async def test_only_one_lane_shares_a_batch_and_the_oldest_goes_first():
    device = Device()
    async with batcher() as queue:
        image, text = device.lane("image"), device.lane("text")
        (first,) = await submitted([queue.run(image, 0)])
        await entered(device)
        tasks = await submitted(
            [queue.run(text, 1), queue.run(image, 2), queue.run(text, 3), queue.run(image, 4)],
        )
        device.gate.set()
        assert await asyncio.gather(first, *tasks) == [0, 1, 4, 9, 16]
    assert device.batches == [[0], [1, 3], [2, 4]]


async def test_a_full_queue_refuses_at_once_with_a_delay():
    device = Device()
    async with batcher(queue_limit=2) as queue:
        lane = device.lane()
        tasks = await submitted([queue.run(lane, 0)])
        await entered(device)
        tasks += await submitted([queue.run(lane, 1), queue.run(lane, 2)])
        with pytest.raises(Overloaded, match="PHOSPHENE_QUEUE_IMAGES") as caught:
            await queue.run(lane, 3)
        assert 0.05 <= caught.value.retry_after_s <= 30
        tasks[1].cancel()
        await asyncio.sleep(0)
        tasks += await submitted([queue.run(lane, 4)])
        device.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    assert answers == [0, 4, 16]


async def test_expired_work_costs_no_device_time():
    device, clock, events = Device(), Clock(), Recorder()
    async with batcher(clock, events=events) as queue:
        lane = device.lane()
        (first,) = await submitted([queue.run(lane, 0)])
        await entered(device)
        late, early = await submitted(
            [queue.run(lane, 1, deadline_s=clock() + 5), queue.run(lane, 2, deadline_s=clock() + 50)]
        )
        clock.now_s += 5
        device.gate.set()
        assert await early == 4
        with pytest.raises(DeadlineExpired):
            await late
        await first
    assert device.batches == [[0], [2]]
    assert events.drops == ["expired"]


async def test_cancelled_work_leaves_the_queue_at_once():
    device, events = Device(), Recorder()
    async with batcher(events=events) as queue:
        lane = device.lane()
        (first,) = await submitted([queue.run(lane, 0)])
        await entered(device)
        (gone,) = await submitted([queue.run(lane, 1)])
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert queue.depth == 0
        device.gate.set()
        await first
    assert device.batches == [[0]]
    assert events.drops == ["cancelled"]


async def test_a_lane_that_loses_a_result_fails_and_answers_nobody_wrongly():
    async with batcher() as queue:
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await queue.run(Lane("broken", lambda items: []), 1)


async def test_closing_refuses_what_waits_and_what_comes():
    device, events = Device(), Recorder()
    queue = batcher(events=events)
    await queue.__aenter__()
    lane = device.lane()
    (running,) = await submitted([queue.run(lane, 3)])
    await entered(device)
    (waiting,) = await submitted([queue.run(lane, 4)])
    closing = asyncio.create_task(queue.__aexit__(None, None, None))
    await asyncio.sleep(0)
    device.gate.set()
    await closing
    assert await running == 9
    with pytest.raises(Overloaded, match="shutting down"):
        await waiting
    with pytest.raises(Overloaded, match="shutting down"):
        await queue.run(lane, 5)
    assert events.drops == ["closed"]


@st.composite
def loads(draw):
    count = draw(st.integers(1, 40))
    fates = st.sampled_from(["fine", "fine", "fine", "poison", "cancel", "expire"])
    return draw(st.lists(fates, min_size=count, max_size=count)), draw(st.integers(1, 9)), draw(st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(loads())
def test_results_go_to_exactly_the_request_that_asked(load):
    fates, batch_limit, lane_count = load
    numbers = {fate: {item for item, other in enumerate(fates, 1) if other == fate} for fate in set(fates)}
    device = Device(poison=frozenset(numbers.get("poison", ())))
    clock = Clock()

    async def play():
        async with batcher(clock, batch_limit=batch_limit) as queue:
            lanes = [device.lane(str(number)) for number in range(lane_count)]
            (blocker,) = await submitted([queue.run(lanes[0], 0)])
            await entered(device)
            tasks = await submitted(
                [
                    queue.run(
                        lanes[item % lane_count], item, deadline_s=clock() + 1 if fates[item - 1] == "expire" else None
                    )
                    for item in range(1, len(fates) + 1)
                ]
            )
            for item in numbers.get("cancel", ()):
                tasks[item - 1].cancel()
            await asyncio.sleep(0)
            clock.now_s += 2
            device.gate.set()
            assert await blocker == 0
            return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(play())
    for item, (fate, answer) in enumerate(zip(fates, answers, strict=True), 1):
        match fate:
            case "fine":
                assert answer == item * item
            case "poison":
                assert isinstance(answer, ValueError)
                assert str(answer) == f"poison [{item}]"
            case "cancel":
                assert isinstance(answer, asyncio.CancelledError)
            case "expire":
                assert isinstance(answer, DeadlineExpired)
    worked = {item for batch in device.batches for item in batch}
    assert not worked & (numbers.get("cancel", set()) | numbers.get("expire", set()))
    assert max(map(len, device.batches)) <= batch_limit


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 100))
def test_the_delay_is_bounded(waiting_count, item_s):
    assert 0.05 <= retry_after_s(waiting_count, item_s) <= 30
