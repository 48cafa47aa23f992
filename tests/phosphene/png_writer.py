"""Writes PNGs of every colour type, and says in ten lines what they should look like."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def packed_rows(samples: np.ndarray[Any, Any], depth: int) -> bytes:
    """Rows of [height, width, channels] samples at 1, 2, 4, 8 or 16 bits, each after a filter byte of 0."""
    rows = []
    for row in samples.reshape(len(samples), samples.shape[1] * samples.shape[2]):
        if depth == 16:
            packed = row.astype(">u2").tobytes()
        else:
            bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
            packed = np.packbits(bits.astype(np.uint8)).tobytes()
        rows.append(b"\0" + packed)
    return b"".join(rows)


def png_bytes(
    samples: np.ndarray[Any, Any],
    *,
    colour_type: int,
    depth: int,
    palette: bytes = b"",
    transparency: bytes | None = None,
    extra: bytes = b"",
    rows: bytes | None = None,
) -> bytes:
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            extra,
            chunk(b"PLTE", palette) if palette else b"",
            b"" if transparency is None else chunk(b"tRNS", transparency),
            chunk(b"IDAT", zlib.compress(packed_rows(samples, depth) if rows is None else rows)),
            chunk(b"IEND", b""),
        ]
    )


def seen_over_white(
    samples: np.ndarray[Any, Any], *, colour_type: int, depth: int, palette: bytes, transparency: bytes | None
) -> np.ndarray[Any, Any]:
    """What a viewer shows on white paper: float [height, width, 3], 0..255."""
    height, width, _ = samples.shape
    opacity = np.ones((height, width, 1))
    if colour_type == 3:
        colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)[samples[..., 0]].astype(float)
        alphas = np.frombuffer(transparency or b"", np.uint8)
        opacity = np.where(samples < len(alphas), np.append(alphas, 0)[np.minimum(samples, len(alphas))] / 255, 1.0)
    else:
        colours = samples[..., : 1 if colour_type in (0, 4) else 3] * 255.0 / (2**depth - 1)
        if colour_type in (4, 6):
            opacity = samples[..., -1:] / (2**depth - 1)
        elif transparency is not None:
            key = np.frombuffer(transparency, ">u2")
            opacity = 1.0 - (samples == key).all(axis=2, keepdims=True)
    return np.broadcast_to(colours * opacity + 255 * (1 - opacity), (height, width, 3))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something smooth with a little grain, as photographs are."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray(np.clip(smooth + generator.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8))
