"""The parts of `make bench-slow_redis`: the length of a line, and the link that has one."""

import asyncio
import contextlib

import pytest

from benchmarks.service_load.slow_link import SlowLink
from benchmarks.slow_redis import Line


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [("40", Line(rtt_ms=40.0), "40 ms"), ("20+60", Line(rtt_ms=20.0, jitter_ms=60.0), "20 ms + 0..60")],
)
def test_a_line_is_read_and_named(text, line, name):
    assert Line.read(text) == line
    assert line.name == name


@contextlib.asynccontextmanager
async def echo_behind(delay_s, jitter_s=0.0):
    """A connection to a server that sends everything back, through a link of this length."""

    async def echo(reader, writer):
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(100):
                writer.write(piece)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        target_port = server.sockets[0].getsockname()[1]
        async with SlowLink(target_port) as link, await asyncio.start_server(link.accept, "127.0.0.1", 0) as entry:
            link.delay_s, link.jitter_s = delay_s, jitter_s
            reader, writer = await asyncio.open_connection("127.0.0.1", entry.sockets[0].getsockname()[1])
            yield reader, writer
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_nothing_is_faster_than_the_line_and_pieces_travel_beside_each_other():
    loop = asyncio.get_running_loop()
    async with echo_behind(0.2) as (reader, writer):
        begun_s = loop.time()
        for number in range(20):
            writer.write(b"%02d" % number)
            await asyncio.sleep(0.005)
        async with asyncio.timeout(20):
            assert await reader.readexactly(40) == b"".join(b"%02d" % number for number in range(20))
        # One behind the other they would take 20 times 0.4 s.
        assert 0.4 <= loop.time() - begun_s < 6.0


async def test_jitter_keeps_the_order():
    async with echo_behind(0.0, 0.02) as (reader, writer):
        for number in range(100):
            writer.write(b"%02d" % number)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert await reader.readexactly(200) == b"".join(b"%02d" % number for number in range(100))
