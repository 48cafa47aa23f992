"""Who may come in: refuses at once what there is no room for or what could not be answered in time; knows no gRPC.

Everything admitted and unfinished is counted: images, bytes, pixels, and the cost of what has yet to reach the engine;
so is who waits for an image that another request has in hand. Bulk leaves room for whoever waits, and one caller for
the others (`Shares`).
The estimate of an answer is that of the slower of two: decoding first and then the engine's queue of now, or the
engine's queue with all that is being decoded. Both know lanes and callers, so one caller's flood is not another's wait.
No estimate knows who comes next and overtakes: the margin on it is learnt from what was admitted and came too late.
Estimates are learnt from batches, so one that refuses everybody would hold for ever: after a second with nothing in
hand one image goes in whatever they say, and tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, runtime_checkable

from phosphene.errors import DeadlineExpired, Overloaded
from service.batching.fair_queue import Ledger
from service.batching.refusals import overloaded
from service.batching.shares import Excess, Shares, share_of
from service.claims import Claim

__all__ = ["Admission", "AdmissionEvents", "AdmissionLimits", "Admitted", "Held", "Refusal"]

_LEAST_MARGIN, _MOST_MARGIN = 1.2, 2.0
_OUTDATED_S = 1.0
"""Without an image in hand for so long, what was learnt of the device may not hold any more."""
# Together they let about one admitted image in sixty be late.
_LATE_GROWTH, _TIMELY_DECAY = 1.05, 0.9992


class Refusal:
    """Which bound made admission turn work away."""

    QUEUE_FULL = "queue_full"
    BYTES = "bytes"
    PIXELS = "pixels"
    DEADLINE = "deadline"


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """What may be admitted and unfinished at once; a single image is admitted to an empty service whatever its size."""

    images: int
    """Most images."""
    bytes: int
    """Most bytes of their files."""
    pixels: int
    """Most pixels that they decode to."""


@runtime_checkable
class AdmissionEvents(Protocol):
    """What an observer hears, on the event loop; must be quick and must not raise."""

    def admission_refused(self, reason: str) -> None:
        """Work was turned away; `reason` is one of `Refusal`."""

    def admitted_changed(self, *, image_count: int, size_bytes: int, pixel_count: int) -> None:
        """What is admitted and unfinished changed to this."""


class Admission:
    """The books of what is in hand; used on the event loop only."""

    def __init__(
        self,
        *,
        limits: AdmissionLimits,
        clock: Callable[[], float],
        events: AdmissionEvents,
        engine_wait_s: Callable[[Claim, float], float],
        decode_wait_s: Callable[[Claim], float],
        bulk_share: float = 0.25,
    ) -> None:
        """Begin with nothing in hand.

        Args:
            limits: what may be in hand.
            clock: monotonic seconds; deadlines are times of this clock.
            events: told of refusals and of what is in hand.
            engine_wait_s: estimated seconds until the engine has answered this much cost for the claim
                (`Batcher.answer_s`).
            decode_wait_s: estimated seconds until a decode for the claim would begin (`DecodePool.wait_s`).
            bulk_share: share that the queues behind give the bulk lane.
        """
        self._clock = clock
        self._events = events
        self._engine_wait_s = engine_wait_s
        self._decode_wait_s = decode_wait_s
        self._coming = Ledger(bulk_share=bulk_share)
        self._margin = _LEAST_MARGIN
        self._idle_since_s = clock()
        self._images, self._bytes, self._pixels = Shares(limits.images), Shares(limits.bytes), Shares(limits.pixels)
        self.bulk_image_limit = share_of(share_of(limits.images))
        """Most images of bulk work that one caller may have in hand."""

    @property
    def image_count(self) -> int:
        """Images admitted and unfinished, and requests that wait for one of them."""
        return self._images.total

    @property
    def size_bytes(self) -> int:
        """Bytes of the files of those images."""
        return self._bytes.total

    @property
    def pixel_count(self) -> int:
        """Pixels of those images."""
        return self._pixels.total

    def admit(
        self,
        *,
        claim: Claim,
        size_bytes: int,
        pixel_count: int,
        cost: float,
        is_decoded: bool = False,
        held: Held | None = None,
    ) -> Admitted:
        """Take one image in hand, before any work on it; or a text, which the engine's queue holds as well.

        Args:
            claim: on whose behalf, and until when.
            size_bytes: of the file.
            pixel_count: width times height; 0 where it is not known.
            cost: of the engine's work, in block-passes.
            is_decoded: whether it goes to the engine's queue at once.
            held: room that was reserved for it, which becomes its own; None: there is none.

        Returns:
            What gives the room back, on leaving its `with` block.

        Raises:
            Overloaded: there is no room, or no answer in time; it says when to come again.
            DeadlineExpired: the deadline has passed already.
        """
        left_s = math.inf if claim.deadline_s is None else claim.deadline_s - self._clock()
        if left_s <= 0:
            raise DeadlineExpired("the deadline had passed when the image arrived; allow more time")
        if held is None:
            self._check_room(claim, size_bytes, pixel_count)
        elif full := self._excess_pixels(claim, pixel_count):
            raise self._refused(claim, *full)
        if left_s < math.inf:
            decode_wait_s = 0.0 if is_decoded else self._decode_wait_s(claim)
            self._check_time(claim, cost, left_s, decode_wait_s=decode_wait_s, held=held)
        self._coming.add(claim, cost)
        if held is None:
            self._change(claim, 1, size_bytes, pixel_count)
        else:
            held.pass_on()
            self._change(claim, 0, 0, pixel_count)
        return Admitted(
            entered_queue=partial(self._entered_queue, claim, cost),
            left=partial(self._left, claim, size_bytes, pixel_count),
        )

    def follow(self, *, claim: Claim, size_bytes: int) -> Held:
        """Take in hand a request that waits for the same image of another: its file waits here, and costs no work.

        Args:
            claim: on whose behalf.
            size_bytes: of the file.

        Returns:
            What gives the room back, on leaving its `with` block.

        Raises:
            Overloaded: there is no room; it says when to come again.
        """
        self._check_room(claim, size_bytes, 0)
        return self._held(claim, size_bytes)

    def reserve(self, *, claim: Claim, size_bytes: int) -> Held | None:
        """Room for an image that is about to be admitted, so that who follows it does not take it; None: there is none.

        Args:
            claim: on whose behalf.
            size_bytes: of the file.

        Returns:
            What gives the room back where `admit` has not taken it over.
        """
        return None if self._excess(claim, size_bytes, 0) else self._held(claim, size_bytes)

    def _held(self, claim: Claim, size_bytes: int) -> Held:
        self._change(claim, 1, size_bytes, 0)
        return Held(partial(self._change, claim, -1, -size_bytes, 0))

    def _check_room(self, claim: Claim, size_bytes: int, pixel_count: int) -> None:
        full = self._excess(claim, size_bytes, pixel_count)
        if full is not None:
            raise self._refused(claim, *full)

    def _excess(self, claim: Claim, size_bytes: int, pixel_count: int) -> tuple[str, str] | None:
        """Which bound leaves no room for one more image, and what to say of it; None where there is room."""
        if excess := self._images.excess(claim, 1):
            return Refusal.QUEUE_FULL, (
                f"{excess.held} {_what(excess)} are in hand, "
                f"{excess.bound.limit} ({excess.bound.share}PHOSPHENE_QUEUE_IMAGES)"
            )
        if excess := self._bytes.excess(claim, size_bytes):
            return Refusal.BYTES, _too_much(excess, size_bytes, "bytes", "PHOSPHENE_QUEUE_BYTES")
        return self._excess_pixels(claim, pixel_count)

    def _excess_pixels(self, claim: Claim, pixel_count: int) -> tuple[str, str] | None:
        if excess := self._pixels.excess(claim, pixel_count):
            return Refusal.PIXELS, _too_much(excess, pixel_count, "pixels", "PHOSPHENE_QUEUE_PIXELS")
        return None

    def _may_find_out(self, held: Held | None) -> bool:
        """Whether there has been nothing in hand for so long that the estimates may be of another time.

        They are learnt from batches: where they refuse everybody there are none, and they would hold for ever.
        """
        is_alone = self._images.total == (0 if held is None else 1)
        return is_alone and self._clock() - self._idle_since_s >= _OUTDATED_S

    def _check_time(self, claim: Claim, cost: float, left_s: float, *, decode_wait_s: float, held: Held | None) -> None:
        all_queued_s = self._engine_wait_s(claim, self._coming.cost_ahead(claim, cost) + cost)
        # The queue of now is no longer than that of all: where there is time for both there is no need to ask.
        if self._margin * (decode_wait_s + all_queued_s) <= left_s:
            return
        now_queued_s = self._engine_wait_s(claim, cost)
        needed_s = self._margin * max(decode_wait_s + now_queued_s, all_queued_s)
        if needed_s > left_s and not self._may_find_out(held):
            told = f"an answer would take about {needed_s:.2f} s and the deadline is in {left_s:.2f} s"
            raise self._refused(claim, Refusal.DEADLINE, told, wait_s=needed_s - left_s)

    def _refused(self, claim: Claim, reason: str, held: str, *, wait_s: float | None = None) -> Overloaded:
        self._events.admission_refused(reason)
        backlog_s = self._engine_wait_s(claim, self._coming.cost()) if wait_s is None else 2 * wait_s
        return overloaded(held, backlog_s=backlog_s)

    def _entered_queue(self, claim: Claim, cost: float) -> None:
        self._coming.subtract(claim, cost)

    def _left(self, claim: Claim, size_bytes: int, pixel_count: int, is_answered: bool) -> None:
        self._change(claim, -1, -size_bytes, -pixel_count)
        self._idle_since_s = self._clock()
        if claim.deadline_s is None:
            return
        if self._clock() >= claim.deadline_s:
            self._margin = min(self._margin * _LATE_GROWTH, _MOST_MARGIN)
        elif is_answered:
            self._margin = max(self._margin * _TIMELY_DECAY, _LEAST_MARGIN)

    def _change(self, claim: Claim, image_count: int, size_bytes: int, pixel_count: int) -> None:
        self._images.take(claim, image_count)
        self._bytes.take(claim, size_bytes)
        self._pixels.take(claim, pixel_count)
        self._events.admitted_changed(
            image_count=self._images.total, size_bytes=self._bytes.total, pixel_count=self._pixels.total
        )


def _what(excess: Excess) -> str:
    return f"{excess.bound.of_which}images"


def _too_much(excess: Excess, amount: int, unit: str, setting: str) -> str:
    return (
        f"{_what(excess)} of {excess.held} {unit} are in hand and this one has {amount}; "
        f"{excess.bound.limit} is {excess.limit} ({excess.bound.share}{setting})"
    )


class Held:
    """Room for one image; a context manager that gives it back however the wait ends."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        """Made by `Admission` only: what to call once."""
        self._give_back: Callable[[], None] | None = give_back

    def __enter__(self) -> Held:
        """The room was taken already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.give_back()

    def give_back(self) -> None:
        """Give it back, unless that was done or it was passed on."""
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            give_back()

    def pass_on(self) -> None:
        """Somebody else gives it back."""
        self._give_back = None


class Admitted:
    """One image in hand; a context manager that gives its room back however the work ends."""

    def __init__(self, *, entered_queue: Callable[[], None], left: Callable[[bool], None]) -> None:
        """Made by `Admission.admit` only: what to call as the image goes on, and whether it was answered."""
        self._entered_queue = entered_queue
        self._left = left
        self._is_coming = True
        self._is_held = True

    def __enter__(self) -> Admitted:
        """The room was taken by `admit`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give everything back."""
        self.decoded()
        if self._is_held:
            self._is_held = False
            self._left(error is None)

    def decoded(self) -> None:
        """Say that the image is about to enter the engine's queue, which counts its cost from now on."""
        if self._is_coming:
            self._is_coming = False
            self._entered_queue()
