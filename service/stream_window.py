"""How many items of a stream may be under way: as many as its window has, and fewer where answers are large.

What an answer holds is not known before it is made: until then it counts as what its question lets expect, and as much
as the latest answers of the stream had. Used on the event loop only; knows neither questions nor answers.
"""

from __future__ import annotations

import asyncio
from collections import Counter

__all__ = ["StreamWindow", "UnreadBudget"]

_STREAM_LIMIT_BYTES = 16 * 2**20
_LIMIT_BYTES = 256 * 2**20


class UnreadBudget:
    """Bounds the bytes of answers that are not read, over all streams; no caller takes more than half of them.

    A stream that has none under way is never kept waiting, so what is over the limit is one answer a stream at most.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        """Allow at most so many bytes, over all streams."""
        self._limit_bytes = limit_bytes
        self._held_by: Counter[str] = Counter()
        self._waiting: set[asyncio.Event] = set()
        self.held_bytes = 0
        """Bytes of answers that are not read, and those that are expected."""

    def fits(self, size_bytes: int, caller: str) -> bool:
        """Whether a caller may hold that much more."""
        if self._held_by[caller] + size_bytes > self._limit_bytes // 2:
            return False
        return self.held_bytes + size_bytes <= self._limit_bytes

    def hold(self, size_bytes: int, caller: str) -> None:
        """Hold that much more for a caller, or less where it is negative."""
        self.held_bytes += size_bytes
        self._held_by[caller] += size_bytes
        if not self._held_by[caller]:
            del self._held_by[caller]
        if size_bytes < 0:
            for is_less in self._waiting:
                is_less.set()

    async def less(self, has_changed: asyncio.Event) -> None:
        """Wait until less is held, or until `has_changed` is set."""
        self._waiting.add(has_changed)
        try:
            await has_changed.wait()
        finally:
            self._waiting.discard(has_changed)


class StreamWindow:
    """The books of one stream: what was begun and is not read by its caller yet."""

    def __init__(
        self,
        item_limit: int,
        *,
        limit_bytes: int = _STREAM_LIMIT_BYTES,
        budget: UnreadBudget | None = None,
        caller: str = "",
    ) -> None:
        """Nothing is under way.

        Args:
            item_limit: most items that are begun and not read.
            limit_bytes: most bytes of their answers; a lone item may have more.
            budget: what the answers of all streams may have; None: this stream is the only one.
            caller: whose stream it is.
        """
        self._item_limit = item_limit
        self._limit_bytes = limit_bytes
        self._budget = budget if budget is not None else UnreadBudget()
        self._caller = caller
        self._item_count = 0
        self._recent_bytes = 0
        self._has_changed = asyncio.Event()
        self.held_bytes = 0
        """Bytes of answers that are not read, and those that are expected of what is under way."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way or waits to be read."""
        return not self._item_count

    async def begin(self, expected_bytes: int) -> int:
        """Wait until one more item may begin.

        Args:
            expected_bytes: what its question lets expect of its answer.

        Returns:
            The bytes that are kept for its answer; for `made`.
        """
        while not self._fits(kept_bytes := max(expected_bytes, self._recent_bytes)):
            self._has_changed.clear()
            await self._budget.less(self._has_changed)
        self._item_count += 1
        self._hold(kept_bytes)
        return kept_bytes

    def made(self, kept_bytes: int, size_bytes: int) -> None:
        """An answer is there, for which `begin` had kept so much, and it holds so much."""
        self._hold(size_bytes - kept_bytes)
        self._recent_bytes = max(size_bytes, 7 * self._recent_bytes // 8)
        self._has_changed.set()

    def read(self, size_bytes: int) -> None:
        """The caller has taken an answer of so many bytes."""
        self._item_count -= 1
        self._hold(-size_bytes)
        self._has_changed.set()

    def close(self) -> None:
        """The stream has ended: nobody will read what is left."""
        self._hold(-self.held_bytes)
        self._item_count = 0

    def _fits(self, kept_bytes: int) -> bool:
        if self.is_empty:
            return True
        if self._item_count >= self._item_limit or self.held_bytes + kept_bytes > self._limit_bytes:
            return False
        return self._budget.fits(kept_bytes, self._caller)

    def _hold(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self._budget.hold(size_bytes, self._caller)
