"""Who asks for work, in which lane, and until when: what every queue of the service needs to know of a request.

Knows nothing of images, devices or gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Claim", "Lane"]


class Lane(StrEnum):
    """How urgent work is: somebody waits for it, or it is one of many."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """On whose behalf work is done."""

    caller: str = ""
    """Name of the caller's token, or its address where there are no tokens; work of different callers takes turns."""
    lane: Lane = Lane.INTERACTIVE
    """Which lane it goes through."""
    deadline_s: float | None = None
    """Time of the service's monotonic clock after which nobody waits for it; None: no deadline."""
