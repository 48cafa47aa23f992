"""The decode pool with real worker processes: each image its own pixels, and nobody suffers for another's image."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import (
    DeadlineExpired,
    ImageError,
    ImageTooLarge,
    ImageTooSlow,
    ImageUnreadable,
    Overloaded,
    SettingError,
    Unavailable,
)
from phosphene.images import ImageLimits, prepare
from service.claims import Claim, Lane
from service.decoding.pool import DecodeEvents, DecodePool
from service.decoding.process import Death, WorkerEnded, open_decode_process
from tests.service.decoding.pictures import LARGE, SMALL, VARIETY, picture, wide_picture

ROOT = Path(__file__).resolve().parents[2]
CLAIM = Claim()
LIMITS = ImageLimits()


class Heard:
    """Keeps what it hears."""

    def __init__(self):
        self.sizes, self.killed, self.drops, self.depths = [], [], [], []

    def decode_done(self, *, duration_s, size_bytes, pixel_count):
        assert duration_s >= 0
        self.sizes.append((size_bytes, pixel_count))

    def decode_killed(self, cause):
        self.killed.append(cause)

    def decode_depth_changed(self, depth):
        self.depths.append(depth)

    def dropped(self, cause, stage):
        self.drops.append((cause, stage))


class Mortals:
    """Opens workers that meet these deaths, one after the other, each in the middle of the next image."""

    def __init__(self, *deaths):
        self.deaths = list(deaths)
        self.given = []
        """Which worker was given which image, in this order."""
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.fault = None
        self._count = 0

    @asynccontextmanager
    async def __call__(self, limits, time_limit_s):
        self._count += 1
        worker = Mortal(self, self._count)
        await self.may_open.wait()
        if self.fault is not None:
            raise self.fault
        yield worker


class Mortal:
    """A worker that does all else in this process."""

    def __init__(self, mortals, number):
        self.ended = asyncio.get_running_loop().create_future()
        self._mortals = mortals
        self._number = number

    def begin(self, data, preprocessing, done):
        self._mortals.given.append((self._number, data))
        asyncio.get_running_loop().call_soon(self._end, data, preprocessing, done)

    def _end(self, data, preprocessing, done):
        if self._mortals.deaths:
            self.ended.set_result(None)
            done(WorkerEnded(self._mortals.deaths.pop(0), -1))
        else:
            done(prepare(data, preprocessing, LIMITS))


@asynccontextmanager
async def decoding(
    worker_count=1,
    *,
    heard=None,
    queue_limit=256,
    time_limit_s=30.0,
    clock=time.monotonic,
    open_worker=open_decode_process,
):
    async with DecodePool(
        worker_count=worker_count,
        queue_limit=queue_limit,
        time_limit_s=time_limit_s,
        limits=LIMITS,
        clock=clock,
        events=heard if heard is not None else Heard(),
        bulk_share=0.25,
        open_worker=open_worker,
    ) as pool:
        yield pool


def children():
    """Workers of this process, by process id."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"service.decoding.worker" in command:
                found.append(int(child))
    return sorted(found)


def kill(worker):
    """End a worker; when this returns, it has ended."""
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)


def shared_memories():
    """Descriptors of shared memory that this process holds."""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if "phosphene-decode" in link]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    assert children() == []
    assert shared_memories() == []


async def turns(count=20):
    """Let the loop do what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


async def begun(pool, data=None):
    """Begin an image at a stopped worker; it stays in hand."""
    task = asyncio.create_task(pool.prepare(data or picture(1), SMALL, claim=CLAIM))
    await turns()
    assert pool.depth == 0
    return task


def outcome(data, how):
    """Pixels and facts of an image, or class and text of its error."""
    try:
        return facts(prepare(data, how, LIMITS))
    except ImageError as error:
        return type(error), str(error)


def facts(image):
    return image.pixels.shape, image.pixels.tobytes(), image.width, image.height, image.format, image.drafted


async def pooled_outcome(pool, data, how, claim=CLAIM):
    try:
        return facts(await pool.prepare(data, how, claim=claim))
    except ImageError as error:
        return type(error), str(error)


async def test_each_of_200_images_at_once_comes_back_with_its_own_pixels():
    heard = Heard()
    work = [
        (picture(seed, kind=("PNG", "JPEG", "WebP")[seed % 3]), VARIETY[seed % len(VARIETY)]) for seed in range(200)
    ]
    async with decoding(2, heard=heard) as pool:
        answers = await asyncio.gather(
            *(
                pooled_outcome(pool, data, how, Claim(caller=f"peer {number % 7}", lane=list(Lane)[number % 2]))
                for number, (data, how) in enumerate(work)
            )
        )
        assert answers == [outcome(data, how) for data, how in work]
        assert pool.depth == 0
    assert isinstance(heard, DecodeEvents)
    assert sorted(heard.sizes) == sorted(
        (len(data), image[2] * image[3]) for (data, _), image in zip(work, answers, strict=True)
    )
    assert heard.depths[-1] == 0
    assert max(heard.depths) >= 190
    assert not heard.killed
    assert not heard.drops


@st.composite
def damaged(draw):
    """A file with a piece cut off, or with bytes of another value."""
    data = bytearray(picture(draw(st.integers(0, 5)), kind=draw(st.sampled_from(["PNG", "JPEG", "WebP"]))))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data))) or None])


@settings(max_examples=5)
@given(st.lists(st.binary(max_size=64) | damaged(), min_size=20, max_size=40))
def test_an_error_keeps_its_class_and_its_text(files):
    async def ask():
        async with decoding() as pool:
            return [await pooled_outcome(pool, data, SMALL) for data in files]

    assert asyncio.run(ask()) == [outcome(data, SMALL) for data in files]


async def test_the_largest_upload_and_large_pixels():
    data = picture(3, kind="JPEG")
    largest = data + bytes(LIMITS.file_bytes - len(data))
    async with decoding() as pool:
        for file, how in [(largest, SMALL), (data, LARGE), (data, SMALL), (largest, LARGE)]:
            image = await pool.prepare(file, how, claim=CLAIM)
            assert facts(image) == outcome(file, how)
            assert image.pixels.flags.writeable
        assert await pooled_outcome(pool, largest + b"\0", SMALL) == outcome(largest + b"\0", SMALL)
        with pytest.raises(ImageTooLarge, match="PHOSPHENE_IMAGE_LIMIT_BYTES"):
            await pool.prepare(largest + b"\0", SMALL, claim=CLAIM)


async def test_a_picture_that_takes_too_long_is_given_up():
    heard = Heard()
    async with decoding(heard=heard, time_limit_s=0.1) as pool:
        with pytest.raises(ImageTooSlow, match=r"more than 0\.1 s, the limit \(PHOSPHENE_DECODE_LIMIT_S\)"):
            await pool.prepare(wide_picture(), SMALL, claim=CLAIM)
    assert heard.killed == ["timeout"]


async def test_a_worker_that_hangs_costs_one_image():
    heard = Heard()
    async with decoding(2, heard=heard, time_limit_s=2.0) as pool:
        hanging, _ = children()
        os.kill(hanging, signal.SIGSTOP)
        answers = await asyncio.gather(
            *(pool.prepare(picture(seed), SMALL, claim=CLAIM) for seed in range(20)), return_exceptions=True
        )
        failed = [seed for seed, answer in enumerate(answers) if isinstance(answer, BaseException)]
        assert len(failed) == 1
        assert isinstance(answers[failed[0]], ImageTooSlow)
        assert all(
            facts(answer) == outcome(picture(seed), SMALL) for seed, answer in enumerate(answers) if seed not in failed
        )
        assert facts(await pool.prepare(picture(failed[0]), SMALL, claim=CLAIM)) == outcome(picture(failed[0]), SMALL)
    assert heard.killed == ["timeout"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_an_image_that_is_not_to_blame_for_the_end_of_its_worker_is_answered(number):
    heard = Heard()
    async with decoding(heard=heard) as pool:
        [worker] = children()
        os.kill(worker, signal.SIGSTOP)
        victim = await begun(pool)
        waiting = asyncio.create_task(pool.prepare(picture(2), SMALL, claim=CLAIM))
        os.kill(worker, number)
        os.kill(worker, signal.SIGCONT)
        assert facts(await victim) == outcome(picture(1), SMALL)
        assert facts(await waiting) == outcome(picture(2), SMALL)
    assert heard.killed == ["crash"]


@pytest.mark.parametrize(
    ("deaths", "verdict"),
    [
        ([Death.EXIT], ImageUnreadable),
        ([Death.ALARM], ImageTooSlow),
        ([Death.KILL], None),
        ([Death.CRASH], None),
        ([Death.KILL, Death.KILL], Unavailable),
        ([Death.CRASH, Death.KILL], Unavailable),
        ([Death.CRASH, Death.CRASH], ImageUnreadable),
        ([Death.KILL, Death.CRASH], ImageUnreadable),
        ([Death.KILL, Death.EXIT], ImageUnreadable),
        ([Death.CRASH, Death.ALARM], ImageTooSlow),
    ],
)
async def test_an_image_is_judged_by_how_its_workers_ended(deaths, verdict):
    heard, mortals = Heard(), Mortals(*deaths)
    async with decoding(heard=heard, open_worker=mortals) as pool:
        first = asyncio.create_task(pool.prepare(picture(1), SMALL, claim=CLAIM))
        other = asyncio.create_task(pool.prepare(picture(2), SMALL, claim=CLAIM))
        if verdict is None:
            assert facts(await first) == outcome(picture(1), SMALL)
        else:
            with pytest.raises(verdict):
                await first
        assert facts(await other) == outcome(picture(2), SMALL)
    assert heard.killed == ["timeout" if death is Death.ALARM else "crash" for death in deaths]


async def test_the_second_try_is_a_fresh_worker_s_first():
    mortals = Mortals(Death.KILL)
    async with decoding(2, open_worker=mortals) as pool:
        tasks = [asyncio.create_task(pool.prepare(picture(seed), SMALL, claim=CLAIM)) for seed in range(6)]
        await asyncio.gather(*tasks)
    victim = mortals.given[0][1]
    (_, fresh) = [worker for worker, data in mortals.given if data == victim]
    assert fresh == 3
    assert [data for worker, data in mortals.given if worker == fresh][0] == victim


async def test_a_second_try_that_nobody_waits_for_is_never_begun():
    now_s, mortals, heard = [100.0], Mortals(Death.KILL, Death.KILL), Heard()
    async with decoding(2, heard=heard, open_worker=mortals, clock=lambda: now_s[0]) as pool:
        mortals.may_open.clear()
        left = asyncio.create_task(pool.prepare(picture(1), SMALL, claim=CLAIM))
        late = asyncio.create_task(pool.prepare(picture(2), SMALL, claim=Claim(deadline_s=101.0)))
        await turns()
        assert len(mortals.given) == 2
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        now_s[0] = 101.0
        mortals.may_open.set()
        with pytest.raises(DeadlineExpired):
            await late
    assert len(mortals.given) == 2
    assert sorted(heard.drops) == [("cancelled", "decode"), ("expired", "decode")]


async def test_a_second_try_ends_with_the_pool_and_where_no_worker_can_be_started():
    mortals = Mortals(Death.KILL, Death.KILL)
    async with decoding(open_worker=mortals) as pool:
        mortals.fault = SettingError("no decode worker can be started")
        with pytest.raises(Unavailable, match="no decode worker can be started"):
            await pool.prepare(picture(1), SMALL, claim=CLAIM)
        mortals.fault = None
        with suppress(Unavailable):
            await pool.prepare(picture(1), SMALL, claim=CLAIM)
        mortals.deaths[:] = [Death.KILL]
        mortals.may_open.clear()
        waiting = asyncio.create_task(pool.prepare(picture(1), SMALL, claim=CLAIM))
        await turns()
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting


async def test_a_worker_that_ends_while_idle_costs_nothing():
    heard = Heard()
    async with decoding(heard=heard) as pool:
        [worker] = children()
        kill(worker)
        assert facts(await pool.prepare(picture(1), SMALL, claim=CLAIM)) == outcome(picture(1), SMALL)
    assert not heard.killed


async def test_signals_to_the_whole_group_leave_the_workers_to_their_parent():
    async with decoding() as pool:
        [worker] = children()
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker, sent)
        assert facts(await pool.prepare(picture(1), SMALL, claim=CLAIM)) == outcome(picture(1), SMALL)
        assert children() == [worker]


async def test_work_that_is_cancelled_in_the_queue_is_never_begun():
    heard = Heard()
    async with decoding(heard=heard) as pool:
        [worker] = children()
        os.kill(worker, signal.SIGSTOP)
        running = await begun(pool)
        waiting = asyncio.create_task(pool.prepare(picture(2), SMALL, claim=CLAIM))
        await turns()
        assert pool.depth == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.depth == 0
        os.kill(worker, signal.SIGCONT)
        await running
    assert heard.drops == [("cancelled", "decode")]
    assert len(heard.sizes) == 1


async def test_work_that_is_cancelled_at_the_worker_ends_there_and_answers_nobody_else():
    heard = Heard()
    async with decoding(heard=heard) as pool:
        [worker] = children()
        os.kill(worker, signal.SIGSTOP)
        running = await begun(pool)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        following = [asyncio.create_task(pool.prepare(picture(seed), SMALL, claim=CLAIM)) for seed in (2, 3)]
        os.kill(worker, signal.SIGCONT)
        assert [facts(await task) for task in following] == [outcome(picture(seed), SMALL) for seed in (2, 3)]
        assert children() == [worker]
    assert not heard.drops
    assert len(heard.sizes) == 3


async def test_work_whose_deadline_has_passed_is_never_begun():
    heard, now_s = Heard(), [100.0]
    async with decoding(heard=heard, clock=lambda: now_s[0]) as pool:
        [worker] = children()
        os.kill(worker, signal.SIGSTOP)
        running = await begun(pool)
        late, early = (
            asyncio.create_task(pool.prepare(picture(2), SMALL, claim=Claim(deadline_s=deadline_s)))
            for deadline_s in (101.0, 102.0)
        )
        await turns()
        now_s[0] = 101.0
        os.kill(worker, signal.SIGCONT)
        with pytest.raises(DeadlineExpired, match="decode worker"):
            await late
        await asyncio.gather(running, early)
    assert heard.drops == [("expired", "decode")]
    assert len(heard.sizes) == 2


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async with decoding(queue_limit=2) as pool:
        await pool.prepare(picture(1), SMALL, claim=CLAIM)
        assert pool.wait_s(CLAIM) == 0.0
        [worker] = children()
        os.kill(worker, signal.SIGSTOP)
        tasks = [await begun(pool)]
        waits_s = [pool.wait_s(CLAIM)]
        for depth in (1, 2):
            tasks.append(asyncio.create_task(pool.prepare(picture(2), SMALL, claim=CLAIM)))
            await turns()
            assert pool.depth == depth
            waits_s.append(pool.wait_s(CLAIM))
        assert 0 < waits_s[0] < waits_s[1] < waits_s[2]
        with pytest.raises(Overloaded, match=r"2 images wait .* the limit \(PHOSPHENE_QUEUE_IMAGES\)") as refusal:
            await pool.prepare(picture(2), SMALL, claim=CLAIM)
        assert refusal.value.retry_after_s >= 0.05
        os.kill(worker, signal.SIGCONT)
        await asyncio.gather(*tasks)


async def test_somebody_who_waits_goes_before_bulk():
    done = []
    async with decoding() as pool:
        [worker] = children()
        os.kill(worker, signal.SIGSTOP)
        running = await begun(pool)

        async def ask(name, lane):
            await pool.prepare(picture(2), SMALL, claim=Claim(lane=lane))
            done.append(name)

        bulk = [asyncio.create_task(ask(f"bulk {number}", Lane.BULK)) for number in range(6)]
        await turns()
        person = asyncio.create_task(ask("person", Lane.INTERACTIVE))
        await turns()
        os.kill(worker, signal.SIGCONT)
        await asyncio.gather(running, person, *bulk)
    assert done.index("person") <= 1


async def test_closing_while_busy_leaves_no_process_and_no_memory():
    heard = Heard()
    async with decoding(2, heard=heard) as pool:
        workers = children()
        assert len(workers) == 2
        assert shared_memories()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        tasks = [asyncio.create_task(pool.prepare(picture(seed), SMALL, claim=CLAIM)) for seed in range(5)]
        await turns()
        assert pool.depth == 3
    assert children() == []
    assert shared_memories() == []
    for task in tasks:
        with pytest.raises(Unavailable, match="shutting down"):
            await task
    assert heard.drops == [("closed", "decode")] * 3
    assert pool.depth == 0
    with pytest.raises(Unavailable, match="shutting down"):
        await pool.prepare(picture(1), SMALL, claim=CLAIM)


async def test_a_worker_that_cannot_start_is_a_wrong_setting(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(SettingError, match="decode worker ended before it was ready"):
        await decoding(2).__aenter__()
    assert children() == []
    assert shared_memories() == []


async def test_where_no_worker_can_be_started_any_more_nobody_waits_for_ever(monkeypatch):
    async with decoding() as pool:
        monkeypatch.setenv("PYTHONHOME", "/nowhere")
        [worker] = children()
        kill(worker)
        with pytest.raises(Unavailable, match="ask another instance"):
            await pool.prepare(picture(1), SMALL, claim=CLAIM)
        monkeypatch.delenv("PYTHONHOME")
        # The attempt that followed the first refusal may have failed as well.
        with suppress(Unavailable):
            await pool.prepare(picture(1), SMALL, claim=CLAIM)
        assert facts(await pool.prepare(picture(1), SMALL, claim=CLAIM)) == outcome(picture(1), SMALL)


PARENT = """
import asyncio, sys, time
sys.path.insert(0, {root!r})
from tests.service.decoding.test_pool import children, decoding

async def main():
    async with decoding(2):
        print(*children(), flush=True)
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


def test_workers_end_with_a_parent_that_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(root=str(ROOT))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        workers = [os.pidfd_open(int(word)) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    for worker in workers:
        ended, _, _ = select.select([worker], [], [], 20)
        os.close(worker)
        assert ended


def test_a_worker_needs_neither_torch_nor_grpc():
    program = "import service.decoding.worker, phosphene.images, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    assert "PIL.Image" in loaded
    rooms = {name.partition(".")[0] for name in loaded}
    assert not rooms & {"torch", "grpc", "transformers", "google", "prometheus_client", "redis", "index", "training"}
    assert {name for name in loaded if name.startswith("service.")} == {
        "service.decoding",
        "service.decoding.messages",
        "service.decoding.worker",
        "service.decoding.shared_area",
    }
