"""The decode worker: a process of its own that turns image bytes into pixels, one image at a time; knows no service.

`python -m service.decoding.worker SETTINGS` is started by `service.decoding.process` with a socket and shared memory
that it inherits. A decoder that hangs, crashes or is taken over by an image harms no more than this process: it holds
no other image, writes to no standard output, leaves no core file, may not take more memory than one image needs, and
ends with its parent, even in the middle of a picture that never ends.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from phosphene.errors import ImageError
from phosphene.freed_memory import keep_freed_memory
from phosphene.image_limits import ImageLimits
from phosphene.preprocessing import Preprocessing
from service.decoding.messages import (
    REQUEST_BYTES,
    DecodeReply,
    DecodeRequest,
    Ready,
    Refused,
    Succeeded,
    pack_reply,
    unpack_request,
)
from service.decoding.shared_area import SharedArea

if TYPE_CHECKING:
    from phosphene.images import PreparedImage

__all__ = ["WorkerSettings"]

# Of what an image took, for the next one; by default all but 128 KiB is given back after each.
_KEPT_BYTES = 64 * 2**20

Prepare = Callable[[bytes, Preprocessing, ImageLimits], "PreparedImage"]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker is started with."""

    channel: int
    """Descriptor of its end of the socket."""
    area: int
    """Descriptor of the shared memory."""
    limits: ImageLimits
    """What one image may cost."""
    alarm_s: float
    """Seconds on one image after which the worker ends itself: its parent, which kills it before that, is gone."""
    memory_limit_bytes: int
    """Most address space of the process."""

    def to_argument(self) -> str:
        """Return the settings as one command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> WorkerSettings:
        """Read what `to_argument` wrote."""
        fields = json.loads(argument)
        return cls(**fields | {"limits": ImageLimits(**fields["limits"])})


def main(argument: str) -> None:
    """Serve one parent until it closes the socket."""
    settings = WorkerSettings.from_argument(argument)
    _fence(settings)
    # After the fence: NumPy starts a thread for each processor unless it is told not to before it is loaded.
    from phosphene.images import prepare

    gc.collect()
    gc.freeze()
    with socket.socket(fileno=settings.channel) as channel, SharedArea(settings.area) as area:
        try:
            _serve(channel, area, prepare, settings)
        except (BrokenPipeError, ConnectionResetError):
            return


def _fence(settings: WorkerSettings) -> None:
    # A terminal and a service manager signal the whole group; only the parent decides when its workers end.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(settings.memory_limit_bytes)
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    keep_freed_memory(_KEPT_BYTES)


def _limit_memory(limit_bytes: int) -> None:
    # Elsewhere address space says little of memory, and cannot be limited below what is in use.
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _serve(channel: socket.socket, area: SharedArea, prepare: Prepare, settings: WorkerSettings) -> None:
    channel.sendall(pack_reply(Ready()))
    while len(message := channel.recv(REQUEST_BYTES, socket.MSG_WAITALL)) == REQUEST_BYTES:
        signal.setitimer(signal.ITIMER_REAL, settings.alarm_s)
        reply = _answer(unpack_request(message), area, prepare, settings.limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(pack_reply(reply))


def _answer(request: DecodeRequest, area: SharedArea, prepare: Prepare, limits: ImageLimits) -> DecodeReply:
    area.follow(request.area_bytes)
    preprocessing = _preprocessing(area.read(0, request.config_bytes))
    data = area.read(request.config_bytes, request.image_bytes)
    try:
        image = prepare(data, preprocessing, limits)
    except ImageError as error:
        text = str(error).encode(errors="replace")[: len(area)]
        area.write(text)
        return Refused(kind=type(error), text_bytes=len(text))
    area.write(image.pixels.data.cast("B"))
    return Succeeded(format=image.format, drafted=image.drafted, width=image.width, height=image.height)


@lru_cache(maxsize=64)
def _preprocessing(config: bytes) -> Preprocessing:
    return Preprocessing.from_config(json.loads(config))


if __name__ == "__main__":
    main(sys.argv[1])
