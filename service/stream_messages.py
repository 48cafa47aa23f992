"""What is said on a stream of questions; knows no protobuf."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from phosphene.errors import PhospheneError
from service.queries import ExplainQuery

__all__ = ["Answered", "Chunk", "Fault", "Question", "StreamMessage"]

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Question:
    """A question; its image may follow in chunks."""

    item: int
    query: ExplainQuery


@dataclass(frozen=True)
class Chunk:
    """A piece of an image."""

    item: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Fault:
    """A message that asks nothing that could be answered."""

    item: int
    error: PhospheneError
    upload_bytes: int = 0
    """Bytes of an image that follows all the same, in chunks that are read and kept nowhere."""


StreamMessage = Question | Chunk | Fault


@dataclass(frozen=True)
class Answered(Generic[Reply]):
    """What became of one item."""

    item: int
    outcome: Reply | Exception
    """The reply, or why there is none; then its frames are forgotten."""
    size_bytes: int = 0
    """What the reply holds."""
