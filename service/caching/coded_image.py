"""What the cache keeps of an image: the engine's answer and the facts about the file, as bytes and back.

Our own layout, little-endian, exact to the bit: a header, then each array as its counts and its raw numbers. No pickle,
nothing that reading could run. Reading refuses whatever is not exactly one such value; it checks the form and leaves
the numbers to the checksum of whoever stored them. Knows no store and no pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from phosphene.codes import ImageCode
from phosphene.engine import EngineRow
from phosphene.fidelity import Fidelity

__all__ = ["CodedImage", "coded_image_bytes", "read_coded_image"]

_MAGIC = b"PHI\x01"
"""The last byte is the version of the layout."""
_HEADER = struct.Struct("<4sBII32sII")
_COUNT = struct.Struct("<I")
_COUNTS = struct.Struct("<II")
_FIDELITY = struct.Struct("<ddddQ")
_DRAFTED, _TOKENS, _HAS_FIDELITY, _RESIDUAL, _SCORES, _EMBEDDING = 1, 2, 4, 8, 16, 32
_ALL_FLAGS = _DRAFTED | _TOKENS | _HAS_FIDELITY | _RESIDUAL | _SCORES | _EMBEDDING


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedImage:
    """One image as the engine has seen it; the image itself is not kept."""

    sha256: str
    """Digest of the image's bytes, 64 hexadecimal digits."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    drafted: bool
    """Whether it was decoded at a reduced size."""
    row: EngineRow
    """The engine's answer."""


def coded_image_bytes(image: CodedImage) -> bytes:
    """The value as bytes; raises `ValueError` for one that the layout cannot hold."""
    row = image.row
    flags = (
        (_DRAFTED if image.drafted else 0)
        | (_TOKENS if row.token_values is not None else 0)
        | (_HAS_FIDELITY if row.fidelity is not None else 0)
        | (_RESIDUAL if row.residual is not None else 0)
        | (_SCORES if row.scores is not None else 0)
        | (_EMBEDDING if row.embedding is not None else 0)
    )
    if len(image.sha256) != 64 or len(row.code.values) != len(row.code):
        raise ValueError("a digest has 64 hexadecimal digits, and a code one neuron for each value")
    try:
        header = _HEADER.pack(
            _MAGIC,
            flags,
            image.width,
            image.height,
            bytes.fromhex(image.sha256),
            len(row.code),
            row.code.cut_count,
        )
    except struct.error as error:
        raise ValueError(f"an image that the layout of cached values cannot hold: {error}") from None
    parts = [header, _raw(row.code.neuron_ids, "<i4"), _raw(row.code.values, "<f4")]
    if row.token_values is not None:
        if row.token_neuron_ids is None or row.token_neuron_ids.shape != row.token_values.shape:
            raise ValueError("token codes need one neuron for each value")
        if row.token_neuron_ids.size and not 0 <= row.token_neuron_ids.min() <= row.token_neuron_ids.max() < 2**31:
            raise ValueError("neuron ids are from 0 to 2147483647")
        parts += [
            _COUNTS.pack(*row.token_values.shape),
            _raw(row.token_neuron_ids, "<i4"),
            _raw(row.token_values, "<f4"),
        ]
    if row.fidelity is not None:
        of = row.fidelity
        parts.append(_FIDELITY.pack(of.fvu, of.cosine, of.l0, of.residual_norm, of.cut_count))
    for vector in (row.residual, row.scores, row.embedding):
        if vector is not None:
            parts += [_COUNT.pack(len(vector)), _raw(vector, "<f4")]
    return b"".join(parts)


def read_coded_image(data: bytes) -> CodedImage:
    """The value that `coded_image_bytes` wrote; its arrays belong to the caller.

    Raises:
        ValueError: anything else.
    """
    reader = _Reader(data)
    magic, flags, width, height, sha256, active_count, cut_count = reader.record(_HEADER)
    if magic != _MAGIC:
        raise ValueError("not a cached image of this version")
    if flags & ~_ALL_FLAGS:
        raise ValueError(f"a cached image with unknown flags {flags:#x}")
    code = ImageCode(
        neuron_ids=reader.array("<i4", active_count).astype(np.int32),
        values=reader.array("<f4", active_count).astype(np.float32),
        cut_count=cut_count,
    )
    token_values = token_neuron_ids = None
    if flags & _TOKENS:
        shape = reader.record(_COUNTS)
        token_neuron_ids = reader.array("<i4", *shape).astype(np.int64)
        token_values = reader.array("<f4", *shape).astype(np.float32)
    fidelity = None
    if flags & _HAS_FIDELITY:
        fvu, cosine, l0, residual_norm, cuts = reader.record(_FIDELITY)
        fidelity = Fidelity(fvu=fvu, cosine=cosine, l0=l0, residual_norm=residual_norm, cut_count=cuts)
    row = EngineRow(
        code=code,
        token_values=token_values,
        token_neuron_ids=token_neuron_ids,
        fidelity=fidelity,
        residual=reader.vector() if flags & _RESIDUAL else None,
        scores=reader.vector() if flags & _SCORES else None,
        embedding=reader.vector() if flags & _EMBEDDING else None,
    )
    reader.end()
    return CodedImage(sha256=sha256.hex(), width=width, height=height, drafted=bool(flags & _DRAFTED), row=row)


class _Reader:
    """Reads on through the bytes; raises `ValueError` where they end too early or too late."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def record(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self._take(layout.size))

    def array(self, kind: str, *shape: int) -> Shaped[np.ndarray, "*shape"]:
        count = 1
        for length in shape:
            count *= length
        return np.frombuffer(self._take(count * np.dtype(kind).itemsize), dtype=kind).reshape(shape)

    def vector(self) -> Float32[np.ndarray, " count"]:
        (count,) = self.record(_COUNT)
        return self.array("<f4", count).astype(np.float32)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"a cached image with {len(self._data) - self._at} bytes after its end")

    def _take(self, size_bytes: int) -> bytes:
        piece = self._data[self._at : self._at + size_bytes]
        if len(piece) != size_bytes:
            raise ValueError(f"a cached image that ends {size_bytes - len(piece)} bytes early")
        self._at += size_bytes
        return piece


def _raw(array: Shaped[np.ndarray, "*shape"], kind: str) -> bytes:
    return array.astype(kind).tobytes()
