"""An image that a request sent, and the room that its request holds for it; knows neither decoders nor the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType

from service.batching.admission import Admission, Admitted, Held
from service.claims import Claim
from service.workers import Place

__all__ = ["SentImage"]


class SentImage:
    """The image, and what is held for it (`Places` of the cache); a context manager that gives back what is left."""

    def __init__(self, data: bytes, sha256: str, *, claim: Claim, admission: Admission, place: Place | None) -> None:
        """Hold nothing yet.

        Args:
            data: the file.
            sha256: its digest.
            claim: on whose behalf, and until when.
            admission: counts what is in hand.
            place: of the look-up that comes after the device's work; None: there is none.
        """
        self.data = data
        """The file."""
        self.sha256 = sha256
        """Its digest, hexadecimal."""
        self.claim = claim
        """On whose behalf, and until when."""
        self._admission = admission
        self._place = place
        self._held: Held | None = None

    def __enter__(self) -> SentImage:
        """Nothing is taken before it is needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what is left."""
        held, self._held = self._held, None
        if held is not None:
            held.give_back()

    def lead(self) -> None:
        """Keep room for the image: those who follow it are counted from now on, and must not fill its own place.

        Where there is no room the shared cache may have it yet; if not, `Admission.admit` says why it is refused.
        """
        self._held = self._admission.reserve(claim=self.claim, size_bytes=len(self.data))

    def follow(self) -> AbstractContextManager[object]:
        """Take in hand a request that waits for another's image; raises `Overloaded`."""
        with ExitStack() as taken:
            taken.enter_context(self._admission.follow(claim=self.claim, size_bytes=len(self.data)))
            self.reserve_lookup()
            return taken.pop_all()

    def admit(self, *, pixel_count: int, cost: float) -> Admitted:
        """Take the image in hand, in the room that `lead` kept for it where there was any; see `Admission.admit`."""
        held, self._held = self._held, None
        with nullcontext() if held is None else held:
            return self._admission.admit(
                claim=self.claim, size_bytes=len(self.data), pixel_count=pixel_count, cost=cost, held=held
            )

    def reserve_lookup(self) -> None:
        """Take the look-up's place before the device's work; raises `Overloaded`."""
        if self._place is not None:
            self._place.reserve()
