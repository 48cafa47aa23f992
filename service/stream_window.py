"""How many items of a stream may be under way: as many as its window has, and fewer where their answers are large.

What an answer holds is not known before it is made: until then it counts as what its question lets expect, and as much
as the latest answers of the stream had. Used on the event loop only; knows neither questions nor answers.
"""

from __future__ import annotations

import asyncio

__all__ = ["StreamWindow"]

_UNREAD_LIMIT_BYTES = 16 * 2**20


class StreamWindow:
    """The books of one stream: what was begun and is not read by its caller yet."""

    def __init__(self, item_limit: int, *, limit_bytes: int = _UNREAD_LIMIT_BYTES) -> None:
        """Nothing is under way.

        Args:
            item_limit: most items that are begun and not read.
            limit_bytes: most bytes of their answers; a lone item may have more.
        """
        self._item_limit = item_limit
        self._limit_bytes = limit_bytes
        self._item_count = 0
        self._recent_bytes = 0
        self._has_changed = asyncio.Event()
        self.held_bytes = 0
        """Bytes of answers that are not read, and those that are expected of what is under way."""

    async def begin(self, expected_bytes: int) -> int:
        """Wait until one more item may begin.

        Args:
            expected_bytes: what its question lets expect of its answer.

        Returns:
            The bytes that are kept for its answer; for `made`.
        """
        while not self._fits(kept_bytes := max(expected_bytes, self._recent_bytes)):
            self._has_changed.clear()
            await self._has_changed.wait()
        self._item_count += 1
        self.held_bytes += kept_bytes
        return kept_bytes

    def made(self, kept_bytes: int, size_bytes: int) -> None:
        """An answer is there, for which `begin` had kept so much, and it holds so much."""
        self.held_bytes += size_bytes - kept_bytes
        self._recent_bytes = max(size_bytes, 7 * self._recent_bytes // 8)
        self._has_changed.set()

    def read(self, size_bytes: int) -> None:
        """The caller has taken an answer of so many bytes."""
        self._item_count -= 1
        self.held_bytes -= size_bytes
        self._has_changed.set()

    def _fits(self, kept_bytes: int) -> bool:
        if not self._item_count:
            return True
        return self._item_count < self._item_limit and self.held_bytes + kept_bytes <= self._limit_bytes
