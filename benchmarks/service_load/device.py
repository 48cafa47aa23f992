"""A stand-in device: every server under test waits for the same one, and it uses no CPU.

It works like the queue of an accelerator: batches run one after another, each for 20 ms + 5 ms per image; one that is
submitted while another runs begins when that one ends. The time at which the device becomes free lies in a file that
all processes of a server map, so that several workers share one device. Runs in the peers' environments too: imports
the standard library alone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["BATCH_LIMIT", "CEILING_PER_S", "NEURON_COUNT", "SIZE_PX", "StandInDevice", "batch_s", "fingerprint"]

BATCH_LIMIT = 16
"""Most images that any server may give the device at once."""
SIZE_PX = 224
"""Height and width of what it takes."""
NEURON_COUNT = 100
"""Neurons that its answers name: ten for each of ten digits."""
_BATCH_S, _IMAGE_S = 0.020, 0.005
_FREE_AT = struct.Struct("d")


def batch_s(image_count: int) -> float:
    """Seconds that the device takes over a batch."""
    return _BATCH_S + _IMAGE_S * image_count


CEILING_PER_S = BATCH_LIMIT / batch_s(BATCH_LIMIT)
"""Images per second of a device that is given full batches without a pause."""


def fingerprint(pixels: Any) -> tuple[int, ...]:
    """Ten neurons that tell an image: the decimal digits of a checksum, the digit at place p as neuron 10 p + digit.

    Args:
        pixels: uint8 [3, 224, 224]; every 16th row and column counts.
    """
    checksum = zlib.crc32(pixels[:, ::16, ::16].tobytes())
    return tuple(10 * place + int(digit) for place, digit in enumerate(f"{checksum:010d}"))


class StandInDevice:
    """One process's handle on the device; a context manager."""

    def __init__(self, path: Path | str) -> None:
        """Open the device that the file stands for, and make it where it is new."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._threads = threading.Lock()
        with self._locked():
            if os.fstat(self._file).st_size < _FREE_AT.size:
                os.pwrite(self._file, _FREE_AT.pack(0.0), 0)
        self._memory = mmap.mmap(self._file, _FREE_AT.size)

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the file."""
        self._memory.close()
        os.close(self._file)

    def submit(self, image_count: int) -> float:
        """Put a batch behind those that run; returns the monotonic time at which it will be done."""
        if not 1 <= image_count <= BATCH_LIMIT:
            raise ValueError(f"a batch of {image_count} images; the device takes 1 to {BATCH_LIMIT}")
        with self._locked():
            (free_at_s,) = _FREE_AT.unpack_from(self._memory)
            done_at_s: float = max(time.monotonic(), free_at_s) + batch_s(image_count)
            _FREE_AT.pack_into(self._memory, 0, done_at_s)
        return done_at_s

    def wait(self, done_at_s: float) -> None:
        """Sleep until a submitted batch is done."""
        # Not for an event: to take this long and use no processor is all that the device does.
        time.sleep(max(0.0, done_at_s - time.monotonic()))

    def run(self, images: Any) -> list[tuple[int, ...]]:
        """Submit a batch, wait for it, and give the fingerprint of each image."""
        self.wait(self.submit(len(images)))
        return [fingerprint(image) for image in images]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and other processes out."""
        with self._threads:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
