"""A link with a length: forwards TCP to a port, every byte some time after it came, as a long line does.

    python -m benchmarks.service_load.slow_link PORT TARGET_PORT

Reads lines `DELAY_S JITTER_S` and says `ok` to each: from then on every piece takes DELAY_S, and up to JITTER_S more
that is drawn evenly, in either direction. Pieces travel beside each other, in their order: a piece that waits holds
back no other by more than its own draw.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Callable
from typing import Self

__all__ = ["SlowLink", "main"]

_PIECE_BYTES = 65536


class SlowLink:
    """What all connections share: how long the line is now; an async context manager that ends them."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        """Begin without delay, towards a port of loopback."""
        self._target_port = target_port
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.jitter_s = 0.0

    async def __aenter__(self) -> Self:
        """Nothing to start."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cut every connection off."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either end closes."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            ends.append(there_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, there_writer))
                pumps.create_task(self._pump(there_reader, writer))
        except* OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        last_due_s = 0.0
        while piece := await reader.read(_PIECE_BYTES):
            length_s = self.delay_s + self._random.uniform(0.0, self.jitter_s)
            # A hair later than the one before: timers that are due at once come in any order.
            last_due_s = max(math.nextafter(last_due_s, math.inf), loop.time() + length_s)
            loop.call_at(last_due_s, _writing(writer, piece))
        raise ConnectionResetError("one end has closed")


def _writing(writer: asyncio.StreamWriter, piece: bytes) -> Callable[[], None]:
    return lambda: None if writer.transport.is_closing() else writer.write(piece)


async def main(port: int, target_port: int) -> None:
    """Serve until the input ends."""
    async with SlowLink(target_port) as link, await asyncio.start_server(link.accept, "127.0.0.1", port):
        _say("ok")
        while line := await asyncio.to_thread(sys.stdin.readline):
            link.delay_s, link.jitter_s = map(float, line.split())
            _say("ok")


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
