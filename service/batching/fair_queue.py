"""A queue in which lanes and callers take turns, by what their work costs; knows nothing of threads, images or devices.

Interactive and bulk work share the cost in a fixed ratio while both wait; within a lane callers take turns. Both by
virtual time (start-time fair queueing: Goyal, Vin and Cheng, 1996): whose next turn starts earliest is served, and its
next turn starts later by what this one cost. Virtual time also moves on by the served cost over the callers that wait,
so that a stream of new callers starves nobody. Who was idle starts at the present: idleness saves up nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.claims import Claim, Lane

__all__ = ["BULK_SHARE_LIMIT", "FairQueue", "Ledger"]

Entry = TypeVar("Entry", bound=Hashable)

BULK_SHARE_LIMIT = 0.9
"""Most that bulk may be promised: somebody waits for interactive work."""
_STALE_TURNS = 64


class Ledger:
    """Cost of unfinished work by lane and caller, and how much of it is served before what comes next."""

    def __init__(self, *, bulk_share: float) -> None:
        """Begin with nothing.

        Args:
            bulk_share: share of the cost that the bulk lane gets while both lanes wait, 0 to 0.9.
        """
        if not 0 <= bulk_share <= BULK_SHARE_LIMIT:
            raise ValueError(f"bulk_share is {bulk_share}; it must be from 0 to {BULK_SHARE_LIMIT}")
        self._shares = {Lane.INTERACTIVE: 1 - bulk_share, Lane.BULK: bulk_share}
        self._books = {lane: _Book() for lane in Lane}

    def add(self, claim: Claim, cost: float) -> None:
        """Work began to count."""
        book = self._books[claim.lane]
        book.count += 1
        book.cost += cost
        count, caller_cost = book.callers.get(claim.caller, (0, 0.0))
        book.callers[claim.caller] = (count + 1, caller_cost + cost)

    def subtract(self, claim: Claim, cost: float) -> None:
        """Work that was added with the same claim and cost no longer counts."""
        book = self._books[claim.lane]
        count, caller_cost = book.callers[claim.caller]
        book.count -= 1
        # Sums of floats keep crumbs; nothing is left of nothing.
        book.cost = book.cost - cost if book.count else 0.0
        if count == 1:
            del book.callers[claim.caller]
        else:
            book.callers[claim.caller] = (count - 1, caller_cost - cost)

    def cost(self, lane: Lane | None = None) -> float:
        """Cost that counts now, in one lane or in both."""
        if lane is not None:
            return self._books[lane].cost
        interactive, bulk = self._books.values()
        return interactive.cost + bulk.cost

    def count(self, lane: Lane | None = None) -> int:
        """Pieces of work that count now, in one lane or in both."""
        if lane is not None:
            return self._books[lane].count
        interactive, bulk = self._books.values()
        return interactive.count + bulk.count

    def cost_ahead(self, claim: Claim, cost: float) -> float:
        """About how much cost is served before new work of this claim.

        Own work goes first, others in the lane get at most as much each, and the other lane what its share allows.

        Args:
            claim: of the new work.
            cost: of the new work.
        """
        book = self._books[claim.lane]
        _, own_cost = book.callers.get(claim.caller, (0, 0.0))
        other_count = len(book.callers) - (claim.caller in book.callers)
        in_lane = min(book.cost, own_cost + other_count * (own_cost + cost))
        return in_lane + self._across(claim.lane, in_lane + cost)

    def lane_cost_ahead(self, lane: Lane) -> float:
        """How much cost is served before new work at the end of the lane."""
        in_lane = self._books[lane].cost
        return in_lane + self._across(lane, in_lane)

    def _across(self, lane: Lane, cost: float) -> float:
        """What the other lane is served meanwhile."""
        share = self._shares[lane]
        at_most = cost * (1 - share) / share if share else math.inf
        return min(self.cost() - self._books[lane].cost, at_most)


class FairQueue(Generic[Entry]):
    """Entries that wait; each is one key, told apart by equality. Not safe between threads: its owner locks."""

    def __init__(self, *, bulk_share: float) -> None:
        """Begin empty.

        Args:
            bulk_share: share of the cost that the bulk lane gets while both lanes wait, 0 to 0.9; with 0 bulk is
                served when nothing interactive waits.
        """
        self.ledger = Ledger(bulk_share=bulk_share)
        self._tracks: dict[Lane, _Track[Entry]] = {
            Lane.INTERACTIVE: _Track(weight=1 - bulk_share),
            Lane.BULK: _Track(weight=bulk_share),
        }
        self._claims: dict[Entry, tuple[Claim, float]] = {}
        self._now = 0.0

    def __len__(self) -> int:
        """Entries that wait."""
        return len(self._claims)

    def __contains__(self, entry: Entry) -> bool:
        """Whether the entry waits."""
        return entry in self._claims

    def cost(self, lane: Lane | None = None) -> float:
        """Cost that waits, in one lane or in both."""
        return self.ledger.cost(lane)

    def count(self, lane: Lane | None = None) -> int:
        """Entries that wait, in one lane or in both."""
        return self.ledger.count(lane)

    def put(self, entry: Entry, *, claim: Claim, cost: float) -> None:
        """Let an entry wait for its turn.

        Args:
            entry: what `take` gives back.
            claim: whose it is and which lane it goes through.
            cost: what serving it takes, in the owner's unit; more than 0.
        """
        if not 0 < cost < math.inf:
            raise ValueError(f"the cost of an entry is {cost}; it must be a positive number")
        if entry in self._claims:
            raise ValueError("the entry waits already")
        track = self._tracks[claim.lane]
        if not track.count:
            track.start = max(track.start, self._now)
        track.put(entry, claim.caller, cost)
        self._claims[entry] = (claim, cost)
        self.ledger.add(claim, cost)

    def peek(self) -> Entry | None:
        """The entry whose turn it is, left where it is; None where nothing waits."""
        for track in self._in_turn():
            entry = track.peek()
            if entry is not None:
                return entry
        return None

    def oldest(self) -> Entry | None:
        """The entry that waits longest; None where nothing waits."""
        return next(iter(self._claims), None)

    def take(self) -> Entry | None:
        """Remove and give the entry whose turn it is; None where nothing waits."""
        return self.take_matching(None)

    def take_matching(self, matches: Callable[[Entry], bool] | None) -> Entry | None:
        """Remove and give the first entry, in order of turns, that matches; None where none does.

        Args:
            matches: which entries may be taken; None: any. Who is passed over keeps the turn.
        """
        for track in self._in_turn():
            entry = track.take(matches)
            if entry is None:
                continue
            _, cost = self._forget(entry)
            if track.weight:
                self._now = max(self._now, track.start)
                track.start += cost / track.weight
            self._rest()
            return entry
        return None

    def remove(self, entry: Entry) -> bool:
        """Withdraw an entry; False where it does not wait (any more)."""
        if entry not in self._claims:
            return False
        claim, _ = self._forget(entry)
        self._tracks[claim.lane].remove(entry, claim.caller)
        self._rest()
        return True

    def drain(self) -> list[Entry]:
        """Remove and give everything, in the order of arrival."""
        left = list(self._claims)
        for entry in left:
            self.remove(entry)
        return left

    def _in_turn(self) -> tuple[_Track[Entry], _Track[Entry]]:
        interactive, bulk = self._tracks.values()
        return (bulk, interactive) if bulk.turn() < interactive.turn() else (interactive, bulk)

    def _forget(self, entry: Entry) -> tuple[Claim, float]:
        claim, cost = self._claims.pop(entry)
        self.ledger.subtract(claim, cost)
        return claim, cost

    def _rest(self) -> None:
        """Where nothing waits nobody competes: what was used before no longer counts."""
        if not self._claims:
            self._now = 0.0
            for track in self._tracks.values():
                track.start = 0.0


@dataclass(eq=False)
class _Book:
    count: int = 0
    cost: float = 0.0
    callers: dict[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(eq=False)
class _Caller(Generic[Entry]):
    """One caller of one lane: what waits, in order, and when its next turn starts."""

    name: str
    start: float
    number: int
    waiting: OrderedDict[Entry, float] = field(default_factory=OrderedDict)

    def first(self, matches: Callable[[Entry], bool] | None) -> Entry | None:
        if matches is None:
            return next(iter(self.waiting), None)
        return next((entry for entry in self.waiting if matches(entry)), None)


class _Track(Generic[Entry]):
    """One lane: its callers in the order of their turns.

    A caller without waiting work stays remembered while its next turn lies in the future, or it would shed what it
    owes by asking for one thing at a time.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight
        self.start = 0.0
        self.count = 0
        self._now = 0.0
        self._callers: dict[str, _Caller[Entry]] = {}
        self._waiting_callers = 0
        self._turns: list[tuple[float, int, _Caller[Entry]]] = []
        self._number = 0

    def turn(self) -> float:
        """When the lane's next turn starts; a lane without a share comes last."""
        return self.start if self.weight else math.inf

    def put(self, entry: Entry, name: str, cost: float) -> None:
        caller = self._callers.get(name)
        if caller is None or (not caller.waiting and caller.start < self._now):
            caller = self._callers[name] = _Caller(name, self._now, self._next_number())
            self._push(caller)
        self._waiting_callers += not caller.waiting
        caller.waiting[entry] = cost
        self.count += 1

    def peek(self) -> Entry | None:
        passed: list[_Caller[Entry]] = []
        while self._turns and not self._turns[0][-1].waiting:
            passed.append(heapq.heappop(self._turns)[-1])
        first = self._turns[0][-1].first(None) if self._turns else None
        for caller in passed:
            self._keep(caller)
        return first

    def take(self, matches: Callable[[Entry], bool] | None) -> Entry | None:
        passed: list[_Caller[Entry]] = []
        taken = None
        while taken is None and self._turns:
            _, _, caller = heapq.heappop(self._turns)
            taken = caller.first(matches)
            if taken is not None:
                self._serve(caller, taken)
            passed.append(caller)
        for caller in passed:
            self._keep(caller)
        self._rest()
        return taken

    def remove(self, entry: Entry, name: str) -> None:
        caller = self._callers[name]
        del caller.waiting[entry]
        self.count -= 1
        self._waiting_callers -= not caller.waiting
        if not caller.waiting and caller.start <= self._now:
            del self._callers[name]
        if len(self._turns) > 2 * len(self._callers) + _STALE_TURNS:
            self._turns = [turn for turn in self._turns if self._callers.get(turn[-1].name) is turn[-1]]
            heapq.heapify(self._turns)
        self._rest()

    def _serve(self, caller: _Caller[Entry], entry: Entry) -> None:
        cost = caller.waiting.pop(entry)
        self._now = max(self._now + cost / self._waiting_callers, caller.start)
        caller.start += cost
        caller.number = self._next_number()
        self.count -= 1
        self._waiting_callers -= not caller.waiting

    def _keep(self, caller: _Caller[Entry]) -> None:
        """Give a caller its next turn, or forget one that neither waits nor owes."""
        if self._callers.get(caller.name) is not caller:
            return
        if caller.waiting or caller.start > self._now:
            self._push(caller)
        else:
            del self._callers[caller.name]

    def _push(self, caller: _Caller[Entry]) -> None:
        heapq.heappush(self._turns, (caller.start, caller.number, caller))

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _rest(self) -> None:
        if not self.count:
            self._now = 0.0
            self._callers.clear()
            self._turns.clear()
