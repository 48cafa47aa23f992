"""How large an answer may be; knows no gRPC."""

from __future__ import annotations

from phosphene.errors import PhospheneError

__all__ = ["ANSWER_LIMIT_BYTES", "AnswerTooLarge", "check_answer_size"]

ANSWER_LIMIT_BYTES = 17 * 2**20
"""Most bytes of one answer, whatever an upload may have: what clients take unless they are told otherwise."""


class AnswerTooLarge(PhospheneError):
    """An answer is made and cannot be sent; doing it again unchanged fails again."""


def check_answer_size(size_bytes: int, limit_bytes: int) -> None:
    """Raise `AnswerTooLarge` for an answer that no message holds.

    Args:
        size_bytes: of the answer as it is sent.
        limit_bytes: most bytes of one.
    """
    if size_bytes > limit_bytes:
        raise AnswerTooLarge(
            f"the answer has {size_bytes / 2**20:.1f} MiB; the limit is {limit_bytes / 2**20:g} MiB: ask for fewer "
            "images or neurons, or for no thumbnails or patch maps"
        )
