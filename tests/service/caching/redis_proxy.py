"""A TCP proxy in front of a redis-server that breaks in every way that a network breaks."""

import asyncio
import math
import random
from typing import Self


class RedisProxy:
    """Forwards bytes until told otherwise; an async context manager."""

    def __init__(self, target_port, *, seed=0):
        self._target_port = target_port
        self._random = random.Random(seed)
        self._listener = None
        self._port = 0
        self._tasks = set()
        self._writers = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._delay_s = 0.0
        self._flip_share = 0.0
        self._is_cutting = False

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_):
        await self.refuse()
        self._flows.set()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    @property
    def url(self):
        return f"redis://127.0.0.1:{self._port}/0"

    async def refuse(self):
        """Nobody listens, and whoever was connected is cut off."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    def stall(self):
        """Connections come about and nothing moves, in either direction."""
        self._flows.clear()

    def delay(self, delay_s):
        """The line is so long, in either direction; what is on its way travels beside each other, in its order."""
        self._delay_s = delay_s

    def cut(self):
        """Reset whoever is connected; the next one gets through."""
        for writer in list(self._writers):
            writer.transport.abort()

    def cut_everybody(self):
        """Reset whoever is connected or connects."""
        self._is_cutting = True
        self.cut()

    def corrupt(self, share=1.0):
        """Flip one bit in this share of the pieces that come from the server."""
        self._flip_share = share

    async def heal(self):
        """Forward as before."""
        self._delay_s = 0.0
        self._flip_share = 0.0
        self._is_cutting = False
        self._flows.set()
        if self._listener is None:
            await self._listen()

    async def _listen(self):
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _accept(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        mine = {writer}
        self._writers.add(writer)
        try:
            if self._is_cutting:
                return
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            mine.add(server_writer)
            self._writers.add(server_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server_writer, is_answer=False))
                pumps.create_task(self._pump(server_reader, writer, is_answer=True))
        except* OSError:
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            for each in mine:
                each.transport.abort()
            self._writers -= mine
            self._tasks.discard(task)

    async def _pump(self, reader, writer, *, is_answer):
        loop = asyncio.get_running_loop()
        last_due_s = 0.0
        while piece := await reader.read(65536):
            await self._flows.wait()
            if is_answer and self._random.random() < self._flip_share:
                piece = self._flipped(piece)
            now_s = loop.time()
            # What was on its way has long arrived: nothing is overtaken.
            if not self._delay_s and last_due_s < now_s - 1.0:
                writer.write(piece)
                await writer.drain()
                continue
            # A hair later than the one before: timers that are due at once come in any order.
            last_due_s = max(math.nextafter(last_due_s, math.inf), now_s + self._delay_s)
            loop.call_at(last_due_s, _write, writer, piece)
        raise ConnectionResetError("one end has closed")

    def _flipped(self, piece):
        at = self._random.randrange(len(piece))
        return piece[:at] + bytes([piece[at] ^ (1 << self._random.randrange(8))]) + piece[at + 1 :]


def _write(writer, piece):
    if not writer.transport.is_closing():
        writer.write(piece)
