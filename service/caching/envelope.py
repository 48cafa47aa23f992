"""The envelope of a cached value: what proves that bytes from a shared store are the whole value of this very key.

magic (4) | digest of the key (32) | sha256 of all else, cut to 16 bytes | payload. A store may hand out another key's
value, a cut one, or one with flipped bits; each is recognised. It is no signature: who can write to the store can forge
a value, so the store must be as trusted as the service. Knows no store.
"""

from __future__ import annotations

import hashlib

__all__ = ["DIGEST_BYTES", "OVERHEAD_BYTES", "unwrap", "wrap"]

DIGEST_BYTES = 32
"""Length of a key's digest."""
_MAGIC = b"PHC\x01"
"""The last byte is the version of the layout; a version that is not known reads as no value."""
_CHECKSUM_BYTES = 16
_CHECKSUM_AT = len(_MAGIC) + DIGEST_BYTES
OVERHEAD_BYTES = _CHECKSUM_AT + _CHECKSUM_BYTES
"""What the envelope adds to a payload."""


def wrap(digest: bytes, payload: bytes) -> bytes:
    """The payload in its envelope.

    Args:
        digest: of the key, `DIGEST_BYTES` long.
        payload: the value.
    """
    return b"".join((_MAGIC, digest, _checksum(digest, payload), payload))


def unwrap(digest: bytes, data: bytes) -> bytes | None:
    """The payload, or None for anything but the whole value of this key.

    Args:
        digest: of the key that was asked for.
        data: what the store gave.
    """
    if not data.startswith(_MAGIC) or data[len(_MAGIC) : _CHECKSUM_AT] != digest:
        return None
    payload = data[OVERHEAD_BYTES:]
    return payload if data[_CHECKSUM_AT:OVERHEAD_BYTES] == _checksum(digest, payload) else None


def _checksum(digest: bytes, payload: bytes) -> bytes:
    checksum = hashlib.sha256(_MAGIC)
    checksum.update(digest)
    checksum.update(payload)
    return checksum.digest()[:_CHECKSUM_BYTES]
