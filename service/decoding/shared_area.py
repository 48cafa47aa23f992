"""Memory that two processes share and that has no name: an image goes over in it, its pixels come back; knows neither.

An anonymous file (`memfd_create`; elsewhere an unlinked temporary one) that the child inherits as a descriptor. It ends
with the last process that holds it, however that process ends, and takes nothing from a small `/dev/shm`. It grows to
the largest content so far, so that its pages are faulted in once and not for every image.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from types import TracebackType

__all__ = ["SharedArea"]

_START_BYTES = 2**20


class SharedArea:
    """One mapping of the shared memory; a context manager that owns the mapping and the descriptor."""

    def __init__(self, descriptor: int) -> None:
        """Map what a descriptor refers to, all of it.

        Args:
            descriptor: of a file that `create` made; closed with the area.
        """
        self.descriptor = descriptor
        """For a child to inherit."""
        self._memory = mmap.mmap(descriptor, 0)

    @classmethod
    def create(cls) -> SharedArea:
        """Make new memory, of zeros.

        Raises:
            OSError: no descriptor or no memory is left.
        """
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, _START_BYTES)
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> SharedArea:
        """Mapped already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unmap, and close the descriptor."""
        self._memory.close()
        os.close(self.descriptor)

    def __len__(self) -> int:
        """Bytes that are mapped."""
        return len(self._memory)

    def reserve(self, size_bytes: int) -> None:
        """Have room for at least this many bytes; the content stays.

        Raises:
            OSError: no memory is left.
        """
        if size_bytes > len(self):
            # In powers of two, so that images of slowly rising size do not map anew each time.
            os.ftruncate(self.descriptor, 1 << (size_bytes - 1).bit_length())
            self._map_anew()

    def follow(self, size_bytes: int) -> None:
        """Map as much as the other side has mapped, where it has grown the memory."""
        if size_bytes > len(self):
            self._map_anew()

    def write(self, *parts: bytes | memoryview) -> None:
        """Copy the parts to the start, one behind the other."""
        position = 0
        for part in parts:
            end = position + len(part)
            self._memory[position:end] = part
            position = end

    def read(self, start: int, size_bytes: int) -> bytes:
        """Copy some bytes out."""
        return self._memory[start : start + size_bytes]

    def read_writable(self, size_bytes: int) -> bytearray:
        """Copy the first bytes out, to memory that may be changed."""
        with memoryview(self._memory) as view, view[:size_bytes] as part:
            return bytearray(part)

    def _map_anew(self) -> None:
        grown = mmap.mmap(self.descriptor, 0)
        self._memory.close()
        self._memory = grown


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("phosphene-decode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Who shrinks it makes the other side die of SIGBUS; a child that was taken over shall not.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return descriptor
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
