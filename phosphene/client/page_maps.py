"""Maps of where a neuron fires, for a page: on the part of a photo that the model saw, or on a thumbnail.

A map on a thumbnail is a tiny PNG, so that a page of a hundred exemplars stays light; its colour is that of the page.
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence

from phosphene.client.words import number
from phosphene.v1.values_pb2 import CorpusImage, PatchGrid, PatchMap

__all__ = ["heat_map", "mapped_thumbnail", "photo_style"]

_GLOW = bytes((255, 178, 46))
_MOST_OPAQUE = 0.85


def heat_map(activations: Sequence[float], grid: PatchGrid, *, over_photo: bool) -> str:
    """Return one neuron's activation at each patch as a map, the brighter the stronger.

    Args:
        activations: row by row, `row_count` x `column_count` of them.
        grid: the patches.
        over_photo: whether the map lies on the photo (`photo_style`), or on a dark ground beside it.
    """
    largest = max(activations, default=0.0)
    if largest <= 0.0:
        cells = "<i style=opacity:0></i>" * len(activations)
        said = "fires on no patch"
    else:
        cells = "".join(f"<i style=opacity:{_MOST_OPAQUE * value / largest:.2f}></i>" for value in activations)
        said = "where it fires"
    layout = f"grid-template:repeat({grid.row_count},1fr)/repeat({grid.column_count},1fr)"
    ground = "photo over" if over_photo else "photo"
    return (
        f'<figure class="heat"><div class="{ground}" role="img" aria-label="{said}; peak {number(largest)}">'
        f'<div class="cells" style="{layout}">{cells}</div></div><figcaption>{said}</figcaption></figure>'
    )


def photo_style(photo: str, grid: PatchGrid) -> str:
    """Return the CSS of a photo under heat maps: the part that the grid covers, or all of it where that is not known.

    Args:
        photo: as a data URI.
        grid: the patches.
    """
    region = grid.region if grid.HasField("region") else None
    across, from_left = (1.0, 0.0) if region is None else _zoom(region.left, region.right)
    down, from_top = (1.0, 0.0) if region is None else _zoom(region.top, region.bottom)
    return (
        f':root {{ --photo: url("{photo}"); --photo-size: {across:.2%} {down:.2%}; '
        f"--photo-place: {from_left:.2%} {from_top:.2%}; }}\n"
    )


def mapped_thumbnail(source: str, said: str, image: CorpusImage, drawn: PatchMap) -> str:
    """Return a thumbnail cut to a square, with the map where it belongs.

    Args:
        source: the thumbnail as a data URI.
        said: what is said of it, escaped.
        image: the image; it has a size.
        drawn: where the neuron fires.
    """
    wide, high = max(1.0, image.width / image.height), max(1.0, image.height / image.width)
    region = drawn.grid.region
    box = (
        f"left:{region.left:.2%};top:{region.top:.2%};width:{region.right - region.left:.2%};"
        f"height:{region.bottom - region.top:.2%}"
    )
    frame = f"width:{wide:.2%};height:{high:.2%};left:{(1 - wide) / 2:.2%};top:{(1 - high) / 2:.2%}"
    uri = f"data:image/png;base64,{b64encode(_png(drawn)).decode('ascii')}"
    return (
        f'<div class="mapped"><div style="{frame}"><img src="{source}" alt="{said}" loading="lazy">'
        f"<i style='{box};background-image:url(\"{uri}\")'></i></div></div>"
    )


def _zoom(start: float, end: float) -> tuple[float, float]:
    """Return size and place, as CSS has them of a background, so that a box shows [start, end] of an edge."""
    size = 1 / (end - start)
    # A place of 0 puts the first edges together, of 1 the last ones.
    return size, 0.0 if abs(size - 1) < 1e-9 else start * size / (size - 1)


def _png(drawn: PatchMap) -> bytes:
    """Draw a map as a PNG of one pixel for each patch, the more opaque the stronger."""
    width, height = drawn.grid.column_count, drawn.grid.row_count
    opacity = [round(_MOST_OPAQUE * share) for share in drawn.shares]
    rows = (opacity[start : start + width] for start in range(0, width * height, width))
    lines = b"".join(b"\0" + b"".join(_GLOW + bytes((level,)) for level in row) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
