"""One decode worker as its parent sees it: how it ended."""

import asyncio
import os
import select
import signal
import socket
import time
from pathlib import Path

import pytest
import uvloop

from phosphene.images import ImageLimits, PreparedImage
from service.decoding.process import Death, WorkerEnded, WorkerGone, open_decode_process
from tests.service.decoding.pictures import SMALL, picture
from tests.service.decoding.test_pool import children, kill


async def stopped(process):
    """Wait until the process stands still: a signal takes its time, and a small image little."""
    async with asyncio.timeout(30):
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("number", "death"),
    [
        (signal.SIGKILL, Death.KILL),
        (signal.SIGUSR1, Death.KILL),  # not SIGQUIT, which whoever starts the tests in the background ignores
        (signal.SIGALRM, Death.ALARM),
        (signal.SIGSEGV, Death.CRASH),
        (signal.SIGABRT, Death.CRASH),
        (signal.SIGBUS, Death.CRASH),
    ],
)
async def test_what_ended_a_worker_in_the_middle_of_an_image_is_told(number, death):
    async with open_decode_process(ImageLimits(), 30.0) as worker:
        [process] = children()
        os.kill(process, signal.SIGSTOP)
        await stopped(process)
        told = asyncio.get_running_loop().create_future()
        worker.begin(picture(1), SMALL, told.set_result)
        os.kill(process, number)
        os.kill(process, signal.SIGCONT)
        ended = await told
        assert isinstance(ended, WorkerEnded)
        assert worker.ended.done()
        # Collected already, so that its number may be another process's by now.
        assert children() == []
    assert (ended.death, ended.status) == (death, -number)


async def test_a_worker_that_had_ended_before_is_not_blamed_on_the_image():
    async with open_decode_process(ImageLimits(), 30.0) as worker:
        [process] = children()
        kill(process)
        with pytest.raises(WorkerGone):
            worker.begin(picture(1), SMALL, pytest.fail)


async def test_an_image_that_is_due_is_given_up_whatever_came_before_it():
    """One timer stands for all images of a worker: it fires early for none and is spent on none."""
    async with open_decode_process(ImageLimits(), 3.0) as worker:
        loop, [process] = asyncio.get_running_loop(), children()
        first, second = loop.create_future(), loop.create_future()
        worker.begin(picture(1), SMALL, first.set_result)
        assert isinstance(await first, PreparedImage)
        await asyncio.sleep(0.3)
        os.kill(process, signal.SIGSTOP)
        await stopped(process)
        begun_s = loop.time()
        worker.begin(picture(2), SMALL, second.set_result)
        assert isinstance(await second, TimeoutError)
        assert loop.time() - begun_s >= 2.99


def test_an_image_that_was_decoded_in_time_is_not_given_up_by_a_loop_that_was_held_up():
    """On the loop of the service, which looks at its timers behind what it reads."""

    async def hold_up():
        async with open_decode_process(ImageLimits(), 0.5) as worker:
            loop = asyncio.get_running_loop()
            told = loop.create_future()
            ours, theirs = socket.socketpair()

            def hold():
                loop.remove_reader(ours)
                due_s = time.monotonic() + 0.5
                select.select([worker._channel], [], [], 30)
                time.sleep(max(due_s - time.monotonic(), 0) + 0.05)

            with ours, theirs:
                loop.add_reader(ours, hold)
                worker.begin(picture(1), SMALL, told.set_result)
                theirs.send(b"held up from here on")
                return await told

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert isinstance(runner.run(hold_up()), PreparedImage)
