"""A stalled device: health checks are told, and it is given work, which nobody else sends; a success ends the stall.

Knows no gRPC and no device. Ends with its task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from service.observing.logs import log_event

__all__ = ["watch_stalls"]


async def watch_stalls(
    stalls: asyncio.Queue[bool],
    *,
    say_serving: Callable[[bool], Awaitable[None]],
    probe: Callable[[], Awaitable[None]],
    pause_s: float,
) -> None:
    """Follow a device until cancelled.

    Args:
        stalls: whether it has stalled, each time that this changes.
        say_serving: tells health checks.
        probe: gives the device work and waits for it.
        pause_s: seconds from the failure of a probe to the next one; a device that hangs holds the one it has.
    """
    probing: asyncio.Task[None] | None = None
    try:
        while True:
            is_stalled = await stalls.get()
            await say_serving(not is_stalled)
            if probing is not None:
                probing.cancel()
            probing = asyncio.create_task(_probe_on(probe, pause_s)) if is_stalled else None
    finally:
        if probing is not None:
            probing.cancel()


async def _probe_on(probe: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        try:
            await probe()
        except Exception as error:
            log_event("probe failed", level=logging.WARNING, reason=f"{type(error).__name__}: {error}")
        await asyncio.sleep(pause_s)
