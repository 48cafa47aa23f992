"""One image on its way through the decode pool, and what it is to blame for where a worker ends in its middle."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import assert_never

from phosphene.errors import ImageTooSlow, ImageUnreadable, Unavailable
from phosphene.images import PreparedImage
from phosphene.preprocessing import Preprocessing
from service.claims import Claim
from service.decoding.process import Death

__all__ = ["Job", "decode_cost"]


@dataclass(eq=False, kw_only=True)
class Job:
    """An image that somebody waits for."""

    data: bytes = field(repr=False)
    """The file as it arrived."""
    preprocessing: Preprocessing
    """What the encoder asks of its pixels."""
    claim: Claim
    """On whose behalf, and until when."""
    cost: float
    """Megapixels, about."""
    answer: asyncio.Future[PreparedImage] = field(repr=False)
    """Settled once; a caller that has gone has cancelled it."""
    has_lost_worker: bool = False
    """Whether a worker ended in the middle of it, for a reason that may not be the image's."""

    def succeed(self, image: PreparedImage) -> None:
        """Answer, unless nobody waits any more."""
        if not self.answer.done():
            self.answer.set_result(image)

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless nobody waits any more."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def lose_worker(self, death: Death, *, time_limit_s: float) -> bool:
        """Tell whether a fresh worker is to try it; where not, it has failed.

        Args:
            death: what ended the worker in its middle.
            time_limit_s: how long one image may decode for.
        """
        had_lost_worker, self.has_lost_worker = self.has_lost_worker, True
        match death:
            case Death.ALARM:
                self.take_too_long(time_limit_s)
            case Death.EXIT:
                self.fail(_unreadable())
            case Death.CRASH | Death.KILL if not had_lost_worker:
                return True
            case Death.CRASH:
                self.fail(_unreadable())
            case Death.KILL:
                self.fail(
                    Unavailable(
                        "two decode workers were killed in the middle of this image, by the system or an operator; try "
                        "again, or ask another instance"
                    )
                )
            case _:
                assert_never(death)
        return False

    def take_too_long(self, time_limit_s: float) -> None:
        """Fail, because a worker was given this long and no longer."""
        self.fail(
            ImageTooSlow(
                f"image decodes for more than {time_limit_s:g} s, the limit (PHOSPHENE_DECODE_LIMIT_S); "
                "scale it down, or save it anew, not progressive"
            )
        )


def decode_cost(pixel_count: int, data: bytes) -> float:
    """Megapixels; the bytes stand in where the file does not tell (0 pixels), and where they are more."""
    return max(pixel_count, len(data)) / 1e6


def _unreadable() -> ImageUnreadable:
    return ImageUnreadable("image ends its decoder: it is damaged or needs too much memory; save it anew, smaller")
