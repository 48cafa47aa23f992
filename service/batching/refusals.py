"""What a queue of the service answers to work that it turns away, in the same words everywhere; knows no queue."""

from __future__ import annotations

from phosphene.errors import DeadlineExpired, Overloaded, Unavailable
from service.batching.latency import retry_after_s

__all__ = ["closing", "expired", "overloaded"]


def closing() -> Unavailable:
    """The queue takes nothing any more."""
    return Unavailable("the service is shutting down; ask another instance")


def expired(when: str) -> DeadlineExpired:
    """The deadline of work passed in the queue.

    Args:
        when: goes on after "the deadline passed".
    """
    return DeadlineExpired(f"the deadline passed {when}; allow more time")


def overloaded(held: str, *, backlog_s: float) -> Overloaded:
    """The queue has no room for work, or no time.

    Args:
        held: what is held, and the limit.
        backlog_s: estimated seconds until all of it is done; whoever is refused may come again after half of it.
    """
    wait_s = retry_after_s(backlog_s)
    return Overloaded(f"{held}; try again in {wait_s:.2f} s", retry_after_s=wait_s)
