"""What a decode worker and its parent say to each other: fixed-size messages beside the shared memory; no pickle.

The shared memory holds the content: the preprocessing (canonical JSON) and the file on the way there, pixels or the
text of an error on the way back. Nothing that a worker says is trusted further than its length: it may have been taken
over by an image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from phosphene.errors import ImageError, ImageFormatUnsupported, ImageTooLarge, ImageTooSlow, ImageUnreadable

__all__ = [
    "ERROR_KINDS",
    "REPLY_BYTES",
    "REQUEST_BYTES",
    "DecodeReply",
    "DecodeRequest",
    "Ready",
    "Refused",
    "Succeeded",
    "pack_reply",
    "pack_request",
    "unpack_reply",
    "unpack_request",
]

_REQUEST = struct.Struct("<III")
_REPLY = struct.Struct("<BBBxIII")
REQUEST_BYTES = _REQUEST.size
"""Length of a packed request."""
REPLY_BYTES = _REPLY.size
"""Length of a packed reply."""

ERROR_KINDS: tuple[type[ImageError], ...] = (
    ImageError,
    ImageFormatUnsupported,
    ImageTooLarge,
    ImageTooSlow,
    ImageUnreadable,
)
"""Every error that may come back; a message holds its place here."""

_FORMATS: tuple[Literal["JPEG", "PNG", "WebP"], ...] = ("JPEG", "PNG", "WebP")
_READY, _SUCCEEDED, _REFUSED = range(3)


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """An image lies in the shared memory: prepare it."""

    area_bytes: int
    """Size of the shared memory now."""
    config_bytes: int
    """Length of the preprocessing's JSON, which comes first."""
    image_bytes: int
    """Length of the file, which comes next."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The worker has started."""


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    """The pixels lie in the shared memory, in the shape that the preprocessing gives."""

    format: Literal["JPEG", "PNG", "WebP"]
    """As told by content."""
    drafted: bool
    """As in `PreparedImage`."""
    width: int
    """Of the whole image, upright."""
    height: int
    """Of the whole image, upright."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The image cannot be used; the reason lies in the shared memory, in UTF-8."""

    kind: type[ImageError]
    """One of `ERROR_KINDS`."""
    text_bytes: int
    """Length of the reason."""


DecodeReply: TypeAlias = Ready | Succeeded | Refused


def pack_request(request: DecodeRequest) -> bytes:
    """Return the message, `REQUEST_BYTES` long."""
    return _REQUEST.pack(request.area_bytes, request.config_bytes, request.image_bytes)


def unpack_request(message: bytes) -> DecodeRequest:
    """Read what `pack_request` wrote."""
    area_bytes, config_bytes, image_bytes = _REQUEST.unpack(message)
    return DecodeRequest(area_bytes=area_bytes, config_bytes=config_bytes, image_bytes=image_bytes)


def pack_reply(reply: DecodeReply) -> bytes:
    """Return the message, `REPLY_BYTES` long."""
    match reply:
        case Ready():
            return _REPLY.pack(_READY, 0, 0, 0, 0, 0)
        case Succeeded(format=format_, drafted=drafted, width=width, height=height):
            return _REPLY.pack(_SUCCEEDED, _FORMATS.index(format_), drafted, width, height, 0)
        case Refused(kind=kind, text_bytes=text_bytes):
            return _REPLY.pack(_REFUSED, ERROR_KINDS.index(kind), 0, 0, 0, text_bytes)
        case _:
            assert_never(reply)


def unpack_reply(message: bytes) -> DecodeReply:
    """Read what `pack_reply` wrote.

    Raises:
        ValueError: no worker of this version says that.
    """
    tag, member, drafted, width, height, text_bytes = _REPLY.unpack(message)
    match tag:
        case 0:
            return Ready()
        case 1 if member < len(_FORMATS):
            return Succeeded(format=_FORMATS[member], drafted=bool(drafted), width=width, height=height)
        case 2 if member < len(ERROR_KINDS):
            return Refused(kind=ERROR_KINDS[member], text_bytes=text_bytes)
        case _:
            raise ValueError(f"a decode worker replied {message.hex()}, which means nothing")
