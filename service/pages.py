"""Page tokens: where a list goes on, bound to the request and the generation that it belongs to.

A token is the offset and a digest of offset, request and generation: one that was cut, changed, or carried over to
another request or generation is told from a good one and refused, never read as some other page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import asdict

from phosphene.errors import InputError
from phosphene.manifest import canonical_json
from service.queries import NeuronListQuery

__all__ = ["page_offset", "page_token"]

_OFFSET_BYTES = 4
_SEAL_BYTES = 16
_TOKEN_CHARACTERS = 27
"""Both together in base64, without padding."""


def page_token(query: NeuronListQuery, generation_id: str, offset: int) -> str:
    """The token of the page that begins at `offset`."""
    position = offset.to_bytes(_OFFSET_BYTES, "big")
    return base64.urlsafe_b64encode(position + _seal(query, generation_id, position)).decode().rstrip("=")


def page_offset(query: NeuronListQuery, generation_id: str) -> int:
    """Where the page that `query.page_token` asks for begins; 0 for an empty token.

    Raises:
        InputError: the token is not one of this request and generation.
    """
    if not query.page_token:
        return 0
    raw = _raw(query.page_token)
    position, seal = raw[:_OFFSET_BYTES], raw[_OFFSET_BYTES:]
    if seal != _seal(query, generation_id, position):
        raise InputError(
            "page_token does not belong to this request and generation; begin again with an empty one",
            field="page_token",
        )
    return int.from_bytes(position, "big")


def _raw(token: str) -> bytes:
    """The bytes of a token, none of what is no token; what is longer than one may be megabytes, and is not read."""
    if len(token) != _TOKEN_CHARACTERS:
        return b""
    try:
        return base64.b64decode(token + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _seal(query: NeuronListQuery, generation_id: str, position: bytes) -> bytes:
    bound = {
        "generation": generation_id,
        "bundle": query.scope.bundle,
        "corpus": query.scope.corpus,
        "include_sensitive": query.scope.include_sensitive,
        "order": query.order.value,
        "filter": asdict(query.filter),
        "offset": position.hex(),
    }
    return hashlib.sha256(canonical_json(bound)).digest()[:_SEAL_BYTES]
