"""The photos that every server is asked about: small ones, and ones of 3 megapixels; and what the answers must be.

The photos are those of ../shared where they are, rendered scenes elsewhere. A request's serial number goes into its
JPEG as a comment: no two requests send the same bytes, so that no cache answers for the device, and all decode alike.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks.service_load.device import SIZE_PX, fingerprint
from phosphene.images import ExactSize, Preprocessing, prepare

__all__ = ["PREPROCESSING", "Decoding", "Size", "large_photos", "make_photos", "small_photos"]

Size = Literal["small", "large"]
Decoding = Literal["drafted", "whole"]
"""Whether a large JPEG is decoded at a part of its size (Phosphene) or in full (the peers)."""
PREPROCESSING = Preprocessing(
    resize=ExactSize(height=SIZE_PX, width=SIZE_PX),
    resample="bicubic",
    crop=None,
    rescale_factor=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
_SHARED = Path("../shared/photos/caltech101")
_SMALL_COUNT, _LARGE_COUNT = 48, 12
_LARGE_PX = (2048, 1536)
_TILE_PX = 256


def make_photos(folder: Path) -> Path:
    """Write the photos of both sizes and the fingerprints that are due, once; returns the folder."""
    if (folder / "expected.json").exists():
        return folder
    sources = _sources(folder.parent / "scenes")
    photos: dict[Size, list[bytes]] = {"small": small_photos(sources), "large": large_photos(sources, _LARGE_COUNT)}
    expected: dict[str, list[dict[Decoding, tuple[int, ...]]]] = {}
    for size, files in photos.items():
        (folder / size).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(files):
            (folder / size / f"{number:03d}.jpg").write_bytes(data)
        expected[size] = [due(data) for data in files]
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    return folder


def due(data: bytes) -> dict[Decoding, tuple[int, ...]]:
    """The fingerprint that the device gives for a photo, by the way in which it is decoded."""
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
    return {
        "drafted": fingerprint(prepare(data, PREPROCESSING).pixels),
        "whole": fingerprint(np.asarray(whole).transpose(2, 0, 1)),
    }


def small_photos(sources: Sequence[Path]) -> list[bytes]:
    """Photos from all over the list at their own size, as JPEG."""
    step = max(1, len(sources) // _SMALL_COUNT)
    return [_jpeg(Image.open(source).convert("RGB")) for source in sources[::step][:_SMALL_COUNT]]


def large_photos(sources: Sequence[Path], count: int) -> list[bytes]:
    """Photos of 3 megapixels, each composed of 48 others at full detail."""
    columns, rows = _LARGE_PX[0] // _TILE_PX, _LARGE_PX[1] // _TILE_PX
    photos = []
    for number in range(count):
        canvas = Image.new("RGB", _LARGE_PX)
        for tile in range(columns * rows):
            source = sources[(number * 997 + tile * 131) % len(sources)]
            picture = Image.open(source).convert("RGB").resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
            canvas.paste(picture, (tile % columns * _TILE_PX, tile // columns * _TILE_PX))
        photos.append(_jpeg(canvas))
    return photos


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _sources(scenes: Path) -> list[Path]:
    if _SHARED.is_dir():
        return sorted(_SHARED.glob("*/*.jpg"))
    if not scenes.exists():
        options = ("--count", "200", "--size", "256")
        subprocess.run([sys.executable, "-m", "embedded.scenes", "render", str(scenes), *options], check=True)
    return sorted(path for path in (scenes / "images").iterdir() if path.is_file())
