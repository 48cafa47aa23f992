"""When a failed call is tried again; pure arithmetic, knows nothing of channels and never waits itself.

A call of `phosphene.v1` has no effects, so repeating one is safe. Two failures pass by themselves: a service that is
not there yet, or leaves (`ServiceUnreachable`, `Unavailable`), and one that is full (`Overloaded`, which says for how
long). Both are tried again within the deadline that the caller gave to the whole call, never after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from phosphene.errors import Overloaded, PhospheneError, ServiceUnreachable, SettingError, Unavailable

__all__ = ["TIMEOUT_LIMIT_S", "Attempts", "RetryPolicy", "retry_delay_s"]

TIMEOUT_LIMIT_S = 24 * 60 * 60
"""The longest time for a call: a day. Far above it nothing can wait: from some 10^10 seconds on gRPC takes a deadline
for one that has passed, and the queues of threads overflow."""
# So that the power of two is one that a float holds.
_DOUBLING_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient a client is."""

    timeout_s: float = 30.0
    """Seconds for a whole call, waits and repeats included; above 0, and `TIMEOUT_LIMIT_S` at most."""
    retry_count: int = 2
    """Repeats after the first attempt; 0 for none."""
    first_delay_s: float = 0.1
    """Seconds before the first repeat where the service does not say; it doubles with each repeat."""
    longest_delay_s: float = 2.0
    """Where the doubling ends, in seconds."""
    jitter: float = 0.5
    """Largest share of a delay that chance adds, so that clients that failed together do not come back together."""

    def __post_init__(self) -> None:
        """Refuse what cannot be waited for.

        Raises:
            SettingError: `timeout_s` is not above 0 or is more than a day, or `retry_count` is negative.
        """
        if not 0 < self.timeout_s <= TIMEOUT_LIMIT_S:
            raise SettingError(
                f"timeout_s is {self.timeout_s}; give seconds above 0, and {TIMEOUT_LIMIT_S} (a day) at most",
                field="timeout_s",
            )
        if self.retry_count < 0:
            raise SettingError(f"retries is {self.retry_count}; it is 0 or more", field="retries")


def retry_delay_s(
    policy: RetryPolicy, error: PhospheneError, *, retry_count: int, chance: Callable[[], float] = random.random
) -> float | None:
    """Return the seconds to wait before the next repeat, or None where `error` is to be raised.

    Args:
        policy: how patient to be.
        error: what went wrong.
        retry_count: repeats so far.
        chance: a number in [0, 1), for the jitter.

    Returns:
        None for every error that repeating cannot mend, when the repeats are used up, and for a wait of `timeout_s` or
        more.
    """
    if retry_count >= policy.retry_count:
        return None
    doubled_s = policy.first_delay_s * 2.0 ** min(retry_count, _DOUBLING_LIMIT)
    delay_s = min(doubled_s, policy.longest_delay_s) * (1.0 + policy.jitter * chance())
    match error:
        case Overloaded():
            delay_s = max(error.retry_after_s, delay_s)
        case ServiceUnreachable() | Unavailable():
            pass
        case _:
            return None
    return delay_s if delay_s < policy.timeout_s else None


class Attempts:
    """The attempts of one call: how much time is left, and whether to try again."""

    def __init__(
        self, policy: RetryPolicy, *, clock: Callable[[], float], chance: Callable[[], float] = random.random
    ) -> None:
        """Start the deadline.

        Args:
            policy: how patient to be.
            clock: seconds on a clock that never goes back.
            chance: a number in [0, 1), for the jitter.
        """
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._deadline = clock() + policy.timeout_s
        self._retry_count = 0

    def remaining_s(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self._deadline - self._clock())

    def delay_s(self, error: PhospheneError) -> float | None:
        """Return the seconds to wait before trying again after `error`, or None where it is to be raised.

        None for every error that repeating cannot mend, when the retries are used up, and when the wait would end
        after the deadline.
        """
        delay_s = retry_delay_s(self._policy, error, retry_count=self._retry_count, chance=self._chance)
        if delay_s is None or delay_s >= self.remaining_s():
            return None
        self._retry_count += 1
        return delay_s
