"""Runs work ahead in a pool, block by block, with a bounded number of blocks under way; knows nothing of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

__all__ = ["blocks_ahead"]

T = TypeVar("T")
_BLOCKS_AHEAD = 2


def blocks_ahead(blocks: Sequence[range], work: Callable[[int], T], pool: Executor) -> Iterator[list[T]]:
    """Yield the results of each block, in order; while the caller uses one, the pool works on the next two.

    Args:
        blocks: the arguments, block by block.
        work: what to do with each argument; runs in the pool.
        pool: the threads.

    Raises:
        Exception: the first one that `work` raised, in order; what has not begun by then is dropped.
    """
    waiting: deque[list[Future[T]]] = deque()
    following = iter(blocks)
    try:
        for _ in blocks:
            while len(waiting) <= _BLOCKS_AHEAD and (block := next(following, None)) is not None:
                waiting.append([pool.submit(work, argument) for argument in block])
            yield [future.result() for future in waiting.popleft()]
    finally:
        for futures in waiting:
            for future in futures:
                future.cancel()
