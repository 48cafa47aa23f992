"""Who holds how much of one thing, and what everybody, the bulk lane and one caller may hold of it; knows no images.

Bulk work may hold three quarters of the limit, and one caller three quarters of what its lane may hold, rounded up: a
flood of bulk leaves room for whoever waits, and a flood by one for all others. What a caller asks for first is bounded
by what others hold alone, and where nobody holds anything by nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from service.claims import Claim, Lane

__all__ = ["Bound", "Excess", "Shares", "share_of"]


def share_of(limit: int) -> int:
    """Three quarters of a limit, rounded up: nothing is taken from a limit below four."""
    return limit - limit // 4


class Bound(Enum):
    """Whose holdings are bounded, as messages name the bound."""

    ALL = ("", "the limit", "")
    BULK = ("bulk ", "the limit", "three quarters of ")
    CALLER = ("", "the limit for one caller", "three quarters of ")
    BULK_CALLER = ("bulk ", "the limit for one caller", "nine sixteenths of ")

    def __init__(self, of_which: str, limit: str, share: str) -> None:
        """Keep the words.

        Args:
            of_which: goes before the name of what is held.
            limit: names the bound.
            share: goes before the variable that sets the limit.
        """
        self.of_which = of_which
        self.limit = limit
        self.share = share


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Why more does not fit."""

    bound: Bound
    """What would be exceeded."""
    held: int
    """How much is held within it."""
    limit: int
    """How much may be."""


class Shares:
    """The books of one thing; used on the event loop only."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing held.

        Args:
            limit: most that all may hold together.
        """
        self._limit, self._caller_limit = limit, share_of(limit)
        self._bulk_limit, self._bulk_caller_limit = share_of(limit), share_of(share_of(limit))
        self._bulk = 0
        self._callers: dict[str, int] = {}
        self._bulk_callers: dict[str, int] = {}
        self.total = 0
        """How much is held."""

    def excess(self, claim: Claim, amount: int) -> Excess | None:
        """Why this much more does not fit; None where it does."""
        if self.total and self.total + amount > self._limit:
            return Excess(bound=Bound.ALL, held=self.total, limit=self._limit)
        match claim.lane:
            case Lane.INTERACTIVE:
                pass
            case Lane.BULK:
                if self._bulk and self._bulk + amount > self._bulk_limit:
                    return Excess(bound=Bound.BULK, held=self._bulk, limit=self._bulk_limit)
                own = self._bulk_callers.get(claim.caller, 0)
                if own and own + amount > self._bulk_caller_limit:
                    return Excess(bound=Bound.BULK_CALLER, held=own, limit=self._bulk_caller_limit)
            case _:
                assert_never(claim.lane)
        # Of both lanes together: or a caller would fill with bulk what its share keeps from it.
        own = self._callers.get(claim.caller, 0)
        if own and own + amount > self._caller_limit:
            return Excess(bound=Bound.CALLER, held=own, limit=self._caller_limit)
        return None

    def take(self, claim: Claim, amount: int) -> None:
        """This much more is held; less, where the amount is negative."""
        if not amount:
            return
        self.total += amount
        _change(self._callers, claim.caller, amount)
        if claim.lane is Lane.BULK:
            self._bulk += amount
            _change(self._bulk_callers, claim.caller, amount)

    def give_back(self, claim: Claim, amount: int) -> None:
        """What was taken with the same claim is held no more."""
        self.take(claim, -amount)


def _change(held: dict[str, int], caller: str, amount: int) -> None:
    now = held.get(caller, 0) + amount
    if now:
        held[caller] = now
    else:
        del held[caller]
