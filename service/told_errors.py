"""What is left of an error once its story is told; knows no request.

The frames of a traceback hold all that they worked on, an image of megabytes among it, and close a circle wherever one
of them holds the error as well, or a future that has it for its outcome. Such a circle is undone by the garbage
collector alone, whose time comes by the count of objects, not of bytes.
"""

from __future__ import annotations

__all__ = ["forget_frames"]


def forget_frames(error: BaseException) -> None:
    """Let go of the frames of an error, and of those that it came from.

    Args:
        error: to be called once its traceback is in the log, or belongs in none; it keeps its type and its text.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        left += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
