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
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path

import numpy as np

from phosphene.errors import SettingError
from phosphene.image_limits import ImageLimits
from phosphene.images import PreparedImage
from phosphene.preprocessing import ExactSize, Preprocessing
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
# Between the two looks that give an image up: a loop that was itself held up hears the answer between them.
_SECOND_LOOK_S = 0.002
# Holds the package `service`: a checkout or an image, in neither of which it need be installed.
_CODE_FOLDER = Path(__file__).resolve().parents[2]


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

    def __init__(
        self, *, channel: socket.socket, area: SharedArea, process: subprocess.Popen[bytes], time_limit_s: float
    ) -> None:
        """Listen to a worker.

        Args:
            channel: the parent's end of the socket, not blocking.
            area: the memory that is shared with the worker.
            process: the worker; it is killed and collected here.
            time_limit_s: how long one image may take.
        """
        self._channel = channel
        self._area = area
        self._process = process
        self._time_limit_s = time_limit_s
        self._loop = asyncio.get_running_loop()
        self._on_reply: Callable[[DecodeReply | Exception], None] | None = None
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done once the worker is gone."""
        self._loop.add_reader(channel, self._hear)

    async def started(self) -> None:
        """Wait until the worker can work.

        Raises:
            WorkerEnded: it ended instead.
        """
        if self.ended.done():
            raise _ended(self._collect())
        first: asyncio.Future[DecodeReply | Exception] = self._loop.create_future()
        # Who waits may have been cancelled in this very turn.
        self._on_reply = lambda reply: None if first.done() else first.set_result(reply)
        match await first:
            case Ready():
                return
            case Exception() as error:
                raise error
            case reply:
                raise ValueError(f"a decode worker began with {reply}")

    def begin(
        self, data: bytes, preprocessing: Preprocessing, done: Callable[[PreparedImage | Exception], None]
    ) -> None:
        """Begin to prepare one image, as `phosphene.images.prepare` does.

        A caller that gives up must end the worker: it goes on with the image.

        Args:
            data: the file.
            preprocessing: what the encoder asks of its pixels.
            done: told once, later, what came of it: the image; an `ImageError` as `phosphene.images.prepare` raises it;
                `WorkerEnded`; `TimeoutError` where it takes longer than it may, and then the worker must be ended, as
                after whatever else went wrong.

        Raises:
            WorkerGone: the worker had ended before.
        """
        if self.ended.done():
            # Its end of the socket may be open still, with nobody at this one who would hear an answer.
            raise WorkerGone
        config, size = _config(preprocessing), preprocessing.size
        self._area.reserve(max(len(config) + len(data), 3 * size.height * size.width))
        self._area.write(config, data)
        request = DecodeRequest(area_bytes=len(self._area), config_bytes=len(config), image_bytes=len(data))
        try:
            # Far smaller than the socket's buffer, which is empty: it goes out whole.
            self._channel.send(pack_request(request))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerGone from error
        self._on_reply = lambda reply: done(self._outcome(reply, size))
        self._due_s = self._loop.time() + self._time_limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._due_s, self._look)

    def _outcome(self, reply: DecodeReply | Exception, size: ExactSize) -> PreparedImage | Exception:
        try:
            return self._read(reply, size)
        except Exception as error:  # Such as MemoryError: whoever waits is told in any case.
            return error

    def _read(self, reply: DecodeReply | Exception, size: ExactSize) -> PreparedImage | Exception:
        match reply:
            case Succeeded():
                pixels = np.frombuffer(self._area.read_writable(3 * size.height * size.width), np.uint8)
                return PreparedImage(
                    pixels=pixels.reshape(3, size.height, size.width),
                    width=reply.width,
                    height=reply.height,
                    format=reply.format,
                    drafted=reply.drafted,
                )
            case Refused(kind=kind, text_bytes=text_bytes):
                return kind(self._area.read(0, text_bytes).decode(errors="replace"))
            case Ready():
                return ValueError("a decode worker said that it is ready in the middle of an image")
            case _:
                return reply

    async def end(self) -> None:
        """End the worker, and wait until it has; nobody is told of its image any more."""
        self._on_reply = None
        self._process.kill()
        if self._timer is not None:
            self._timer.cancel()
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

    def _look(self, was_due_s: float | None = None) -> None:
        """Give up an image that is due; one timer stands for all, for to set one for each costs more than it waits.

        Args:
            was_due_s: what was due at the first look; None: this is one.
        """
        self._timer = None
        if self._on_reply is None:
            return
        if self._loop.time() < self._due_s:
            self._timer = self._loop.call_at(self._due_s, self._look)
        elif was_due_s != self._due_s:
            self._timer = self._loop.call_later(_SECOND_LOOK_S, self._look, self._due_s)
        else:
            self._tell(TimeoutError())

    def _hear(self) -> None:
        try:
            message = self._channel.recv(REPLY_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        if len(message) < REPLY_BYTES:
            self._loop.remove_reader(self._channel)
            self.ended.set_result(None)
            if self._on_reply is not None:
                self._tell(_ended(self._collect()))
            return
        try:
            reply = unpack_reply(message)
        except ValueError as error:
            self._tell(error)
        else:
            self._tell(reply)

    def _tell(self, reply: DecodeReply | Exception) -> None:
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(reply)


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
            worker = DecodeProcess(channel=channel, area=area, process=process, time_limit_s=time_limit_s)
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
