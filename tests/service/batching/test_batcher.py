import asyncio
import gc
import random
import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import DeadlineExpired, DeviceFailed, DeviceOutOfMemory, Overloaded, Unavailable
from service.batching.batcher import Batcher, BatcherEvents, Operation, SilentEvents, operation
from service.claims import Claim, Lane


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@dataclass
class Device:
    """A device whose batches can be held; it squares numbers, breaks on poisoned ones and holds so many at most."""

    poison: frozenset = frozenset()
    memory_items: int = 10**6
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list = field(default_factory=list)
    threads: set = field(default_factory=set)

    def operation(self, name="square", **costs):
        return operation(name, self.run, **costs)

    def run(self, items):
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(30)
        if len(items) > self.memory_items:
            raise DeviceOutOfMemory(f"{len(items)} items do not fit")
        bad = self.poison & set(items)
        if bad:
            raise ValueError(f"poison {sorted(bad)}")
        return [item * item for item in items]


@dataclass
class Stages:
    """A device that works beside the engine thread: each launched batch waits to be let through."""

    poison: frozenset = frozenset()
    launched: asyncio.Queue = field(default_factory=asyncio.Queue)
    batches: list = field(default_factory=list)

    def operation(self, name="square"):
        loop = asyncio.get_running_loop()

        def launch(items):
            done = threading.Event()
            self.batches.append(list(items))
            loop.call_soon_threadsafe(self.launched.put_nowait, done)

            def collect():
                assert done.wait(30)
                if self.poison & set(items):
                    raise ValueError("poison")
                return [item * item for item in items]

            return collect

        return Operation(name, launch)


@dataclass
class Recorder(SilentEvents):
    drops: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    costs: list = field(default_factory=list)
    depths: dict = field(default_factory=dict)
    limits: list = field(default_factory=list)
    memory: list = field(default_factory=list)
    successes: int = 0

    def batch_done(self, *, operation, size, queue_s, engine_s, cost):
        assert len(queue_s) == size
        assert min(queue_s) >= 0
        assert engine_s >= 0
        self.sizes.append(size)
        self.costs.append(cost)

    def dropped(self, cause):
        self.drops.append(cause)

    def depth_changed(self, depth, lane):
        self.depths[lane] = depth

    def batch_limit_changed(self, batch_limit):
        self.limits.append(batch_limit)

    def out_of_memory(self, batch_limit):
        self.memory.append(batch_limit)

    def device_succeeded(self):
        self.successes += 1


def batcher(clock=None, *, queue_limit=1000, batch_limit=8, **options):
    return Batcher(queue_limit=queue_limit, batch_limit=batch_limit, clock=clock or Clock(), **options)


def by(caller="", lane=Lane.INTERACTIVE, deadline_s=None):
    return Claim(caller=caller, lane=lane, deadline_s=deadline_s)


async def entered(device):
    """Wait until the engine thread is inside the operation."""
    await asyncio.to_thread(device.entered.acquire)


async def submitted(coroutines):
    """Start calls and let each put its item into the queue."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


async def test_an_idle_engine_answers_at_once_and_a_busy_one_batches():
    device, events = Device(), Recorder()
    async with batcher(events=events) as queue:
        square = device.operation()
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        rest = await submitted([queue.run(square, item) for item in range(1, 12)])
        assert queue.depth == 11
        device.gate.set()
        assert await asyncio.gather(first, *rest) == [item * item for item in range(12)]
    assert device.batches == [[0], list(range(1, 9)), [9, 10, 11]]
    assert events.sizes == [1, 8, 3]
    assert set(events.depths.values()) == {0}
    assert events.successes == 3
    assert len(device.threads) == 1


async def test_only_one_operation_shares_a_batch_and_the_oldest_goes_first():
    device = Device()
    async with batcher() as queue:
        image, text = device.operation("image"), device.operation("text")
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
        square = device.operation()
        tasks = await submitted([queue.run(square, 0)])
        await entered(device)
        tasks += await submitted([queue.run(square, 1), queue.run(square, 2)])
        with pytest.raises(Overloaded, match="PHOSPHENE_QUEUE_IMAGES") as caught:
            await queue.run(square, 3)
        assert 0.05 <= caught.value.retry_after_s <= 30
        tasks[1].cancel()
        await asyncio.sleep(0)
        tasks += await submitted([queue.run(square, 4)])
        device.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    assert answers == [0, 4, 16]


async def test_expired_work_costs_no_device_time():
    device, clock, events = Device(), Clock(), Recorder()
    async with batcher(clock, events=events) as queue:
        square = device.operation()
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        late, early = await submitted(
            [
                queue.run(square, 1, claim=by(deadline_s=clock() + 5)),
                queue.run(square, 2, claim=by(deadline_s=clock() + 50)),
            ]
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
        square = device.operation()
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        (gone,) = await submitted([queue.run(square, 1)])
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert queue.depth == 0
        device.gate.set()
        await first
    assert device.batches == [[0]]
    assert events.drops == ["cancelled"]


async def test_an_operation_that_loses_a_result_fails_and_answers_nobody_wrongly():
    async with batcher() as queue:
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await queue.run(operation("broken", lambda items: []), 1)


async def test_closing_refuses_what_waits_and_what_comes():
    device, events = Device(), Recorder()
    queue = batcher(events=events)
    await queue.__aenter__()
    square = device.operation()
    (running,) = await submitted([queue.run(square, 3)])
    await entered(device)
    (waiting,) = await submitted([queue.run(square, 4)])
    closing = asyncio.create_task(queue.__aexit__(None, None, None))
    await asyncio.sleep(0)
    device.gate.set()
    await closing
    assert await running == 9
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting
    with pytest.raises(Unavailable, match="shutting down"):
        await queue.run(square, 5)
    assert events.drops == ["closed"]


def test_observers_are_observers():
    assert isinstance(Recorder(), BatcherEvents)
    assert isinstance(SilentEvents(), BatcherEvents)


async def test_work_that_comes_too_late_is_not_begun():
    device, clock, events = Device(), Clock(), Recorder()
    async with batcher(clock, events=events) as queue:
        with pytest.raises(DeadlineExpired):
            await queue.run(device.operation(), 1, claim=by(deadline_s=clock()))
    assert device.batches == []
    assert events.drops == ["expired"]


async def test_an_answer_that_comes_too_late_is_not_given():
    device, clock = Device(), Clock()
    async with batcher(clock) as queue:
        (late,) = await submitted([queue.run(device.operation(), 1, claim=by(deadline_s=clock() + 5))])
        await entered(device)
        clock.now_s += 5
        device.gate.set()
        with pytest.raises(DeadlineExpired):
            await late


async def test_batches_and_turns_count_cost_and_not_images():
    """A request of two passes takes two places of a batch, and its caller every other turn."""
    device, events = Device(), Recorder()
    async with batcher(events=events, batch_limit=6) as queue:
        square = device.operation(cost=lambda item: 24.0 if item >= 100 else 12.0, place_cost=12.0)
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        once = [queue.run(square, item, claim=by("once")) for item in range(1, 13)]
        twice = [queue.run(square, item, claim=by("twice")) for item in range(100, 106)]
        tasks = await submitted(once + twice)
        device.gate.set()
        await asyncio.gather(first, *tasks)
    assert events.costs == [12.0] + [72.0] * 4
    assert Counter(item >= 100 for batch in device.batches[1:3] for item in batch) == {False: 6, True: 3}


async def test_an_item_dearer_than_a_batch_goes_alone():
    device = Device()
    async with batcher(batch_limit=4) as queue:
        square = device.operation(cost=lambda item: 9.0 if item == 7 else 1.0)
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        tasks = await submitted([queue.run(square, item) for item in (7, 1, 2)])
        device.gate.set()
        assert await asyncio.gather(first, *tasks) == [0, 49, 1, 4]
    assert device.batches == [[0], [7], [1, 2]]


async def test_callers_and_lanes_take_turns():
    device = Device()
    async with batcher(batch_limit=4, bulk_share=0.25) as queue:
        square = device.operation()
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        tasks = await submitted(
            [queue.run(square, item, claim=by("flood")) for item in range(1, 13)]
            + [queue.run(square, item, claim=by("modest")) for item in range(20, 23)]
            + [queue.run(square, item, claim=by("crawler", Lane.BULK)) for item in range(30, 35)]
        )
        device.gate.set()
        await asyncio.gather(first, *tasks)
    assert all(sum(item >= 30 for item in batch) == 1 for batch in device.batches[1:5])
    modest = [item for batch in device.batches[1:3] for item in batch if 20 <= item < 30]
    assert modest == [20, 21, 22]


async def test_one_bad_item_costs_two_runs_for_each_halving():
    device = Device(poison=frozenset([5]))
    async with batcher(batch_limit=16) as queue:
        square = device.operation()
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        tasks = await submitted([queue.run(square, item) for item in range(1, 17)])
        device.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await first
    assert isinstance(answers.pop(4), ValueError)
    assert answers == [item * item for item in range(1, 17) if item != 5]
    assert len(device.batches) == 1 + 1 + 2 * 4


async def test_nobody_who_left_is_tried_again():
    stages, clock, events = Stages(poison=frozenset([1])), Clock(), Recorder()
    async with batcher(clock, events=events) as queue:
        square = stages.operation()
        (first,) = await submitted([queue.run(square, 0)])
        blocking = await stages.launched.get()
        bad, gone, late, fine = await submitted(
            [
                queue.run(square, 1),
                queue.run(square, 2),
                queue.run(square, 3, claim=by(deadline_s=clock() + 5)),
                queue.run(square, 4),
            ]
        )
        blocking.set()
        failing = await stages.launched.get()
        gone.cancel()
        clock.now_s += 5
        failing.set()
        for _ in range(2):
            (await stages.launched.get()).set()
        assert await asyncio.gather(first, fine) == [0, 16]
        with pytest.raises(DeadlineExpired):
            await late
        with pytest.raises(ValueError, match="poison"):
            await bad
    assert stages.batches == [[0], [1, 2, 3, 4], [1], [4]]
    assert sorted(events.drops) == ["cancelled", "expired"]


async def test_memory_that_runs_out_halves_the_batches_and_comes_back():
    device, events = Device(memory_items=3), Recorder()
    async with batcher(events=events, batch_limit=8) as queue:
        square = device.operation()
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        tasks = await submitted([queue.run(square, item) for item in range(1, 17)])
        device.gate.set()
        assert await asyncio.gather(first, *tasks) == [item * item for item in range(17)]
        assert queue.batch_limit == 2
        assert events.memory[-1] == 2
        assert sum(len(batch) > device.memory_items for batch in device.batches) <= 3
        device.memory_items = 10**6
        for item in range(2 * 64):
            assert await queue.run(square, item) == item * item
        assert queue.batch_limit == 8
    assert events.limits == [8, 4, 8]


async def test_an_item_that_does_not_fit_alone_fails_alone():
    device, events = Device(memory_items=0), Recorder()
    device.gate.set()
    async with batcher(events=events) as queue:
        with pytest.raises(DeviceOutOfMemory):
            await queue.run(device.operation(), 1)
        assert queue.batch_limit == 8
        device.memory_items = 1
        assert await queue.run(device.operation(), 3) == 9
    assert events.memory == [8]


class Activations:
    """What a batch holds on the device while it runs."""


@dataclass
class SmallDevice:
    """A device with room for so many items, whoever holds them: it asks which batches still hold theirs."""

    fails_in: str
    memory_items: int = 1
    held: list = field(default_factory=list)

    def operation(self):
        def launch(items):
            activations = self.taken(items) if self.fails_in == "launch" else None

            def collect():
                mine = activations or self.taken(items)
                return [item * item for item in items if mine]

            return collect

        return Operation("square", launch)

    def taken(self, items):
        activations = Activations()
        self.held.append((len(items), weakref.ref(activations)))
        try:
            if sum(size for size, held in self.held if held() is not None) > self.memory_items:
                raise RuntimeError("CUDA out of memory")
        except RuntimeError as cause:
            raise DeviceOutOfMemory(f"{len(items)} items do not fit") from cause
        return activations


@pytest.mark.parametrize("fails_in", ["launch", "collect"])
async def test_a_batch_that_did_not_fit_leaves_the_memory_to_its_halves(fails_in):
    device = SmallDevice(fails_in)
    gc.disable()  # What only the collector would free is not free when the halves run.
    try:
        async with batcher(batch_limit=4) as queue:
            square = device.operation()
            assert await asyncio.gather(*(queue.run(square, item) for item in range(4))) == [0, 1, 4, 9]
    finally:
        gc.enable()
    assert max(size for size, _ in device.held) > 1


async def test_only_a_full_batch_is_launched_behind_a_running_one():
    stages = Stages()
    async with batcher(batch_limit=4) as queue:
        square = stages.operation()
        (first,) = await submitted([queue.run(square, 0)])
        running = await stages.launched.get()
        three = await submitted([queue.run(square, item) for item in (1, 2, 3)])
        assert queue.depth == 3
        fourth = await submitted([queue.run(square, 4)])
        behind = await stages.launched.get()
        assert stages.batches == [[0], [1, 2, 3, 4]]
        more = await submitted([queue.run(square, item) for item in range(5, 9)])
        assert queue.depth == 4
        running.set()
        assert await first == 0
        third = await stages.launched.get()
        assert stages.batches[2] == [5, 6, 7, 8]
        for done in (behind, third):
            done.set()
        assert await asyncio.gather(*three, *fourth, *more) == [item * item for item in range(1, 9)]


async def test_full_batches_do_not_overtake_work_of_another_operation():
    stages = Stages()
    async with batcher(batch_limit=2) as queue:
        image, text = stages.operation("image"), stages.operation("text")
        tasks = await submitted([queue.run(image, 0, claim=by("images"))])
        running = await stages.launched.get()
        tasks += await submitted([queue.run(text, 50, claim=by("texts"))])
        tasks += await submitted([queue.run(image, item, claim=by("images")) for item in range(1, 7)])
        running.set()
        for _ in range(4):
            (await stages.launched.get()).set()
        await asyncio.gather(*tasks)
    assert stages.batches == [[0], [50], [1, 2], [3, 4], [5, 6]]


async def test_a_device_that_fails_for_good_answers_everything_and_refuses_the_rest():
    device = Device()
    broken = operation("broken", partial(fail_for_good, device))
    async with batcher(batch_limit=2) as queue:
        watching = asyncio.ensure_future(queue.failed())
        (running,) = await submitted([queue.run(broken, 0)])
        await entered(device)
        waiting = await submitted([queue.run(broken, item) for item in range(1, 6)])
        assert not watching.done()
        device.gate.set()
        for answer in await asyncio.gather(running, *waiting, return_exceptions=True):
            assert isinstance(answer, Unavailable)
            assert "CUDA error" in str(answer)
        assert "CUDA error" in str(await watching)
        with pytest.raises(Unavailable):
            await queue.run(broken, 7)
        assert queue.depth == 0
    assert len(device.batches) == 1


def fail_for_good(device, items):
    device.batches.append(list(items))
    device.entered.release()
    assert device.gate.wait(30)
    raise DeviceFailed("CUDA error: an illegal memory access was encountered")


async def test_a_thread_that_breaks_leaves_nobody_waiting():
    def run(items):
        raise SystemExit(3)

    async with batcher() as queue:
        with pytest.raises(Unavailable, match="SystemExit"):
            await queue.run(operation("broken", run), 1)
        assert isinstance((await queue.failed()).__cause__, SystemExit)


async def test_a_stall_is_told_and_so_is_its_end():
    device, clock, told = Device(), Clock(), asyncio.Queue()
    async with batcher(clock, stall_s=0.02, on_stall_changed=told.put_nowait) as queue:
        (hanging,) = await submitted([queue.run(device.operation(), 1)])
        await entered(device)
        assert not queue.is_stalled
        clock.now_s += 1
        assert await told.get() is True
        assert queue.is_stalled
        device.gate.set()
        assert await hanging == 1
        assert await told.get() is False
        assert not queue.is_stalled


@pytest.mark.parametrize("hangs_in", ["launch", "collect"])
async def test_a_device_that_hangs_does_not_keep_the_service_from_ending(hangs_in):
    told, released = asyncio.Queue(), threading.Event()

    def hang():
        assert released.wait(30)
        return [1]

    def launch(items):
        if hangs_in == "launch":
            hang()
        return hang

    try:
        async with Batcher(
            batch_limit=4, queue_limit=8, clock=time.monotonic, stall_s=0.02, on_stall_changed=told.put_nowait
        ) as queue:
            answer = asyncio.create_task(queue.run(Operation("hang", launch), 1))
            assert await told.get()
        # Left while the device still hangs.
        assert not released.is_set()
        with pytest.raises(Unavailable, match="has not answered"):
            await answer
    finally:
        released.set()


async def test_callers_that_give_up_do_not_hide_a_stall():
    device, clock, told = Device(), Clock(), asyncio.Queue()
    async with batcher(clock, stall_s=0.02, on_stall_changed=told.put_nowait) as queue:
        (hanging,) = await submitted([queue.run(device.operation(), 1)])
        await entered(device)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        clock.now_s += 1
        assert await told.get() is True
        device.gate.set()


async def test_the_backlog_is_estimated_from_what_batches_took():
    device, clock = Device(), Clock()
    async with batcher(clock, batch_limit=4) as queue:
        square = device.operation()
        assert queue.backlog_s(Lane.INTERACTIVE) == 0
        (first,) = await submitted([queue.run(square, 0)])
        await entered(device)
        clock.now_s += 2.0
        device.gate.set()
        await first
        device.gate.clear()
        (running,) = await submitted([queue.run(square, 0)])
        await entered(device)
        clock.now_s += 0.5
        waiting = await submitted([queue.run(square, item, claim=by("a")) for item in range(3)])
        assert queue.backlog_s(Lane.INTERACTIVE) == pytest.approx(1.5 + 3 * 2.0)
        assert queue.answer_s(by("a"), 1.0) == pytest.approx(1.5 + 4 * 2.0)
        assert queue.answer_s(by("new"), 1.0) == pytest.approx(1.5 + 2 * 2.0)
        assert queue.oldest_s() == 0.0
        clock.now_s += 0.25
        assert queue.oldest_s() == 0.25
        device.gate.set()
        await asyncio.gather(running, *waiting)


FATES = ["fine", "fine", "fine", "poison", "cancel", "expire"]


@st.composite
def loads(draw):
    """Requests with their fates, and a service that may be short of memory."""
    fate = st.sampled_from(FATES)
    rows = draw(
        st.lists(
            st.tuples(
                fate, st.sampled_from(Lane), st.sampled_from("abc"), st.integers(0, 2), st.sampled_from([1.0, 2.0])
            ),
            min_size=1,
            max_size=40,
        )
    )
    return rows, draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 3, 10**6]))


@settings(max_examples=50)
@given(loads())
def test_results_go_to_exactly_the_request_that_asked(load):
    rows, batch_limit, memory_items = load
    poison = frozenset(item for item, row in enumerate(rows, 1) if row[0] == "poison")
    device, clock, events = Device(poison=poison, memory_items=memory_items), Clock(), Recorder()
    costs = [1.0, *(row[4] for row in rows)]

    async def play():
        async with batcher(clock, batch_limit=batch_limit, events=events) as queue:
            squares = [device.operation(str(number), cost=costs.__getitem__) for number in range(3)]
            (blocker,) = await submitted([queue.run(squares[0], 0)])
            await entered(device)
            tasks = await submitted(
                [
                    queue.run(
                        squares[number],
                        item,
                        claim=by(caller, lane, deadline_s=clock() + 1 if fate == "expire" else None),
                    )
                    for item, (fate, lane, caller, number, _) in enumerate(rows, 1)
                ]
            )
            for task, row in zip(tasks, rows, strict=True):
                if row[0] == "cancel":
                    task.cancel()
            await asyncio.sleep(0)
            clock.now_s += 2
            device.gate.set()
            assert await blocker == 0
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert queue.depth == 0
            return answers

    answers = asyncio.run(play())
    for item, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        match row[0]:
            case "fine":
                assert answer == item * item
            case "poison":
                assert isinstance(answer, ValueError)
                assert str(answer) == f"poison [{item}]"
            case "cancel":
                assert isinstance(answer, asyncio.CancelledError)
            case "expire":
                assert isinstance(answer, DeadlineExpired)
    begun = {item for batch in device.batches for item in batch}
    assert begun == {0} | {item for item, row in enumerate(rows, 1) if row[0] in ("fine", "poison")}
    assert max(map(len, device.batches)) <= batch_limit
    assert all(len({rows[item - 1][3] for item in batch}) == 1 for batch in device.batches[1:])
    assert Counter(events.drops) == Counter(
        {"cancel": "cancelled", "expire": "expired"}[row[0]] for row in rows if row[0] in ("cancel", "expire")
    )


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_callers_that_come_and_go_at_any_moment_get_their_own_answers(seed, batch_limit):
    """Closed-loop callers against a device that works beside the engine thread, with cancels in between."""
    events, chance = Recorder(), random.Random(seed)

    def launch(items):
        return lambda: [item * item for item in items]

    async def play():
        async with batcher(batch_limit=batch_limit, events=events) as queue:
            squares = [Operation(name, launch) for name in ("encode", "text")]

            async def caller(name):
                for number in range(12):
                    item = 1000 * name + number
                    task = asyncio.ensure_future(queue.run(chance.choice(squares), item, claim=by(str(name))))
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                    if chance.random() < 0.2:
                        task.cancel()
                    answer = (await asyncio.gather(task, return_exceptions=True))[0]
                    assert answer == item * item or isinstance(answer, asyncio.CancelledError)

            await asyncio.gather(*map(caller, range(12)))
            assert queue.depth == 0

    asyncio.run(play())
    assert set(events.depths.values()) == {0}
