"""Workers that end at the worst moment, over a real socket: whoever waits for an image is always told."""

import asyncio
import socket
import subprocess
import time
from contextlib import asynccontextmanager

import pytest

from phosphene.errors import ImageTooSlow, SettingError, Unavailable
from phosphene.image_limits import ImageLimits
from service.claims import Claim
from service.decoding.messages import ERROR_KINDS, Refused, pack_reply
from service.decoding.pool import DecodePool
from service.decoding.process import DecodeProcess
from service.decoding.shared_area import SharedArea
from tests.service.decoding.pictures import SMALL, picture
from tests.service.decoding.test_pool import Heard


class SilentWorkers:
    """Opens workers that say only what a test says for them, at the other end of their sockets."""

    def __init__(self, count=100):
        self.opened = []
        self._left = count

    @asynccontextmanager
    async def __call__(self, limits, time_limit_s):
        if not self._left:
            raise SettingError("no process can be started")
        self._left -= 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        process = subprocess.Popen(["sleep", "100"])
        with ours, theirs, SharedArea.create() as area:
            worker = DecodeProcess(channel=ours, area=area, process=process, time_limit_s=time_limit_s)
            self.opened.append((worker, theirs, process))
            try:
                yield worker
            finally:
                theirs.close()  # As the end of a process closes its own.
                await worker.end()


def pool_of(workers, *, worker_count=1, time_limit_s=60.0):
    return DecodePool(
        worker_count=worker_count,
        queue_limit=9,
        time_limit_s=time_limit_s,
        limits=ImageLimits(),
        clock=time.monotonic,
        events=Heard(),
        bulk_share=0.25,
        open_worker=workers,
    )


def ask(pool, number=0):
    return asyncio.create_task(pool.prepare(picture(number), SMALL, claim=Claim()))


async def test_a_worker_that_dies_in_the_turn_in_which_the_pool_closes():
    workers = SilentWorkers()
    pool = pool_of(workers)
    await pool.__aenter__()
    asked = ask(pool)
    await asyncio.sleep(0.02)
    _, theirs, process = workers.opened[-1]
    process.kill()
    theirs.close()
    await asyncio.create_task(pool.__aexit__(None, None, None))
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable):
            await asked


@pytest.mark.parametrize("how", ["half-closed", "a short message"])
async def test_a_worker_whose_socket_ends_as_an_image_comes(how):
    workers = SilentWorkers()
    async with pool_of(workers, time_limit_s=0.5) as pool:
        worker, theirs, _ = workers.opened[-1]
        loop, asked = asyncio.get_running_loop(), []

        def hear():
            worker._hear()
            asked.append(ask(pool))

        loop.remove_reader(worker._channel)
        loop.add_reader(worker._channel, hear)
        if how == "half-closed":
            theirs.shutdown(socket.SHUT_WR)
        else:
            theirs.send(b"abc")
        async with asyncio.timeout(20):
            await asyncio.sleep(0.02)
            # A fresh worker has it, which says nothing in its time.
            with pytest.raises(ImageTooSlow):
                await asked[0]


async def test_a_reply_that_cannot_be_read():
    workers = SilentWorkers()
    async with pool_of(workers) as pool:
        asked = ask(pool)
        await asyncio.sleep(0.02)
        worker, theirs, _ = workers.opened[-1]

        def full(*_):
            raise MemoryError

        worker._area.read = full
        theirs.send(pack_reply(Refused(kind=ERROR_KINDS[0], text_bytes=9)))
        told, _ = await asyncio.wait([asked], timeout=20)
        assert told
        assert asked.exception() is not None


async def test_a_seat_without_a_worker_leaves_images_to_an_idle_one():
    workers = SilentWorkers(count=2)
    async with pool_of(workers, worker_count=2) as pool:
        _, theirs, process = workers.opened[-1]
        process.kill()
        theirs.close()
        await asyncio.sleep(0.05)
        asked = ask(pool)
        await asyncio.sleep(0.02)
        assert not asked.done(), "failed for want of a worker, while one is idle"
        paying = ask(pool, 1)
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable, match="no process can be started"):
                await paying
        asked.cancel()
