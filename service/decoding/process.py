"""One decode worker as its parent sees it: start it, hand it an image, await the pixels, end it; knows no queue.

The child is a fresh interpreter, never a fork of a process with threads and a device. Nothing here blocks the event
loop: the socket has a reader on it, and the process is collected once the socket says that it has ended.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path

import numpy as np

from phosphene.errors import SettingError
from phosphene.image_limits import ImageLimits
from phosphene.images import PreparedImage
from phosphene.preprocessing import Preprocessing
from service.decoding.messages import (
    REPLY_BYTES,
    DecodeReply,
    DecodeRequest,
    Ready,
    Refused,
    Succeeded,
    pack_request,
    unpack_reply,
)
from service.decoding.shared_area import SharedArea
from service.decoding.worker import WorkerSettings

__all__ = ["DecodeProcess", "Death", "WorkerEnded", "WorkerGone", "open_decode_process"]

_START_LIMIT_S = 60.0
# A worker outlives the parent's time limit by this, so that it is the parent who kills it, and says why.
_ALARM_GRACE_S = 2.0
_CODE_FOLDER = Path(__file__).resolve().parent.parent


# What a fault in native code, or a check in it, ends a process with.
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}
)


class Death(Enum):
    """What ended a worker."""

    EXIT = auto()
    """It gave up: its image needs more memory than any may, or broke its decoder."""
    ALARM = auto()
    """Its own alarm, because its parent had no time to kill it: its image takes too long."""
    CRASH = auto()
    """A fault in native code: of its image, or of memory that an image before it has spoilt."""
    KILL = auto()
    """Somebody else: the system that is short of memory, or an operator."""


class WorkerEnded(Exception):
    """The worker ended in the middle of an image."""

    def __init__(self, death: Death, status: int) -> None:
        """Keep how.

        Args:
            death: what ended it.
            status: the exit status; a signal's number is negative.
        """
        super().__init__(f"a decode worker ended with status {status}")
        self.death = death
        """What ended it."""
        self.status = status
        """The exit status; a signal's number is negative."""


class WorkerGone(Exception):
    """The worker had ended before it was given the image, which is not to blame."""


class DecodeProcess:
    """A worker that has started and prepares one image at a time."""

    def __init__(self, *, channel: socket.socket, area: SharedArea, process: subprocess.Popen[bytes]) -> None:
        """Listen to a worker.

        Args:
            channel: the parent's end of the socket, not blocking.
            area: the memory that is shared with the worker.
            process: the worker; it is killed and collected here.
        """
        self._channel = channel
        self._area = area
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[DecodeReply] | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done once the worker is gone."""
        self._loop.add_reader(channel, self._hear)

    async def started(self) -> None:
        """Wait until the worker can work.

        Raises:
            WorkerEnded: it ended instead.
        """
        reply = await self._next_reply()
        if not isinstance(reply, Ready):
            raise ValueError(f"a decode worker began with {reply}")

    async def prepare(self, data: bytes, preprocessing: Preprocessing) -> PreparedImage:
        """Prepare one image, as `phosphene.images.prepare` does.

        A caller that gives up must end the worker: it goes on with the image.

        Raises:
            ImageError: as `phosphene.images.prepare` raises it.
            WorkerEnded: the worker ended in the middle of this image.
            WorkerGone: it had ended before.
        """
        config, size = _config(preprocessing), preprocessing.size
        pixel_bytes = 3 * size.height * size.width
        self._area.reserve(max(len(config) + len(data), pixel_bytes))
        self._area.write(config, data)
        request = DecodeRequest(area_bytes=len(self._area), config_bytes=len(config), image_bytes=len(data))
        try:
            # Far smaller than the socket's buffer, which is empty: it goes out whole.
            self._channel.send(pack_request(request))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerGone from error
        reply = await self._next_reply()
        match reply:
            case Succeeded():
                pixels = np.frombuffer(self._area.read_writable(pixel_bytes), np.uint8)
                return PreparedImage(
                    pixels=pixels.reshape(3, size.height, size.width),
                    width=reply.width,
                    height=reply.height,
                    format=reply.format,
                    drafted=reply.drafted,
                )
            case Refused(kind=kind, text_bytes=text_bytes):
                raise kind(self._area.read(0, text_bytes).decode(errors="replace"))
            case Ready():
                raise ValueError("a decode worker said that it is ready in the middle of an image")

    async def end(self) -> None:
        """End the worker, and wait until it has."""
        self._process.kill()
        try:
            await self.ended
        finally:
            self._loop.remove_reader(self._channel)
            self._collect()

    def _collect(self) -> int:
        """The exit status of a worker whose socket is closed: what is left of the process takes microseconds.

        One that has closed it and goes on is killed.
        """
        self._process.kill()
        return self._process.wait()

    async def _next_reply(self) -> DecodeReply:
        if self.ended.done():
            raise _ended(self._collect())
        self._reply = self._loop.create_future()
        return await self._reply

    def _hear(self) -> None:
        try:
            message = self._channel.recv(REPLY_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        waiting, self._reply = self._reply, None
        is_awaited = waiting is not None and not waiting.done()
        if len(message) < REPLY_BYTES:
            self._loop.remove_reader(self._channel)
            self.ended.set_result(None)
            if waiting is not None and is_awaited:
                waiting.set_exception(_ended(self._collect()))
        elif waiting is not None and is_awaited:
            try:
                waiting.set_result(unpack_reply(message))
            except ValueError as error:
                waiting.set_exception(error)


@asynccontextmanager
async def open_decode_process(limits: ImageLimits, time_limit_s: float) -> AsyncIterator[DecodeProcess]:
    """Start a worker, and kill it in the end.

    Args:
        limits: what one image may cost.
        time_limit_s: how long the parent lets one image decode.

    Raises:
        SettingError: the worker cannot be started.
    """
    with ExitStack() as lifetimes:
        try:
            area = lifetimes.enter_context(SharedArea.create())
            channel, process = _spawn(area, limits, time_limit_s)
        except OSError as error:
            raise SettingError(
                f"no decode worker can be started ({error}); free memory, or raise the limits on processes and open "
                "files, or set PHOSPHENE_DECODE_WORKERS lower"
            ) from error
        with channel:
            worker = DecodeProcess(channel=channel, area=area, process=process)
            try:
                await _await_start(worker)
                yield worker
            finally:
                await worker.end()


def _spawn(area: SharedArea, limits: ImageLimits, time_limit_s: float) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    settings = WorkerSettings(
        channel=theirs.fileno(),
        area=area.descriptor,
        limits=limits,
        alarm_s=time_limit_s + _ALARM_GRACE_S,
        memory_limit_bytes=_memory_limit_bytes(limits),
    )
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.decoding.worker", settings.to_argument()],
                cwd=_CODE_FOLDER,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), area.descriptor),
            )
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    return ours, process


def _ended(status: int) -> WorkerEnded:
    return WorkerEnded(_death(status), status)


def _death(status: int) -> Death:
    """What an exit status, of a worker that its parent did not end, tells of."""
    if status >= 0:
        return Death.EXIT
    if -status == signal.SIGALRM:
        return Death.ALARM
    return Death.CRASH if -status in _CRASHES else Death.KILL


async def _await_start(worker: DecodeProcess) -> None:
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            await worker.started()
    except WorkerEnded as error:
        raise SettingError(
            "a decode worker ended before it was ready; it says why on standard error: see to that, then start again"
        ) from error
    except TimeoutError as error:
        raise SettingError(
            f"a decode worker was not ready after {_START_LIMIT_S:g} s, the limit; give the machine less to do, or set "
            "PHOSPHENE_DECODE_WORKERS lower"
        ) from error


def _memory_limit_bytes(limits: ImageLimits) -> int:
    """Address space for the interpreter, for four copies of what a decoder gives, and for pictures on their way."""
    decoded_bytes = max(limits.jpeg_decoded_bytes, limits.png_decoded_bytes, limits.webp_decoded_bytes)
    return 2**30 + 4 * decoded_bytes + 24 * limits.pixels


@lru_cache(maxsize=64)
def _config(preprocessing: Preprocessing) -> bytes:
    return json.dumps(preprocessing.to_config()).encode()
