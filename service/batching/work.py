"""What is asked of the engine: operations, one item of work, and a batch on the device; does nothing by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.batching.batch_events import Drop
from service.claims import Claim

__all__ = ["Flight", "Operation", "Work", "operation"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def _one(item: object) -> float:
    return 1.0


@dataclass(frozen=True, eq=False)
class Operation(Generic[Item, Result]):
    """Work that may share a batch: the same model doing the same thing."""

    name: str
    """What is done, for messages and metrics."""
    launch: Callable[[Sequence[Item]], Callable[[], Sequence[Result]]]
    """Starts a batch on the engine thread; what it returns is called on the collector thread, waits for the device and
    gives one result for each item, in their order."""
    cost: Callable[[Item], float] = _one
    """Cost of an item in block-passes: one transformer block for one image is 1. More than 0."""
    place_cost: float = 1.0
    """What one place of a batch is meant for, in block-passes; an item that costs twice as much takes two places."""


def operation(
    name: str,
    run: Callable[[Sequence[Item]], Sequence[Result]],
    *,
    cost: Callable[[Item], float] = _one,
    place_cost: float = 1.0,
) -> Operation[Item, Result]:
    """An operation of a plain function that does all its work when it is called.

    Args:
        name: what is done.
        run: gives one result for each item, in their order.
        cost: of an item, in block-passes.
        place_cost: what one place of a batch is meant for, in block-passes.
    """

    def launch(items: Sequence[Item]) -> Callable[[], Sequence[Result]]:
        results = run(items)
        return lambda: results

    return Operation(name, launch, cost, place_cost)


@dataclass(eq=False)
class Work:
    """One item on its way through the queue and the device."""

    operation: Operation[Any, Any]
    """What to do."""
    item: Any
    """With what."""
    claim: Claim
    """On whose behalf, and until when."""
    cost: float
    """In block-passes."""
    queued_s: float
    """When it began to wait."""
    answer: asyncio.Future[Any] = field(repr=False)
    """Settled on the event loop only."""
    is_typical: bool = True
    """Whether its batch tells how long others take: not where it pays for lazy set-up."""

    def drop_cause(self, now_s: float) -> str | None:
        """Why nobody wants the answer any more, one of `Drop`; None where somebody does."""
        if self.answer.cancelled():
            return Drop.CANCELLED
        deadline_s = self.claim.deadline_s
        return Drop.EXPIRED if deadline_s is not None and now_s >= deadline_s else None


@dataclass(eq=False)
class Flight:
    """A batch on the device, or on its way there."""

    works: list[Work]
    """Of one operation; at least one."""
    begun_s: float
    """When it was taken from the queue."""
    collect: Callable[[], Sequence[Any]] | None = None
    """What its launch gave; None until then."""

    cost: float = field(init=False)
    """Of all its items, in block-passes."""

    def __post_init__(self) -> None:
        """Sum up once: every admission asks."""
        self.cost = sum(work.cost for work in self.works)

    @property
    def operation(self) -> Operation[Any, Any]:
        """What all its items ask for."""
        return self.works[0].operation
