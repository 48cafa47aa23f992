"""A cache in this process, bounded in bytes; the least recently used value goes first. Knows no keys but digests.

It stands in where there is no Redis, or none that keeps what it is given; in front of a working one it does not stand.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["ENTRY_BYTES", "LocalCache"]

ENTRY_BYTES = 256
"""What an entry costs beside its value: digest, objects and links, rounded up."""


class LocalCache:
    """Values by digest; for one event loop."""

    def __init__(self, *, limit_bytes: int) -> None:
        """Begin empty.

        Args:
            limit_bytes: most bytes of all entries together; 0 keeps nothing.
        """
        self._limit_bytes = limit_bytes
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._held_bytes = 0

    def __len__(self) -> int:
        """Entries held."""
        return len(self._values)

    @property
    def held_bytes(self) -> int:
        """What the entries cost together; never above the limit."""
        return self._held_bytes

    def get(self, digest: bytes) -> bytes | None:
        """The value, which is then the most recently used one; None where there is none."""
        value = self._values.get(digest)
        if value is not None:
            self._values.move_to_end(digest)
        return value

    def put(self, digest: bytes, value: bytes) -> None:
        """Keep a value, at the cost of the least recently used ones; one larger than the whole cache is not kept."""
        self._drop(digest)
        cost_bytes = len(value) + ENTRY_BYTES
        if cost_bytes > self._limit_bytes:
            return
        while self._held_bytes + cost_bytes > self._limit_bytes:
            self._drop(next(iter(self._values)))
        self._values[digest] = value
        self._held_bytes += cost_bytes

    def _drop(self, digest: bytes) -> None:
        value = self._values.pop(digest, None)
        if value is not None:
            self._held_bytes -= len(value) + ENTRY_BYTES
