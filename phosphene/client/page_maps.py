"""Maps of where a neuron fires, for a page: on the part of a photo that the model saw, or on a thumbnail.

A map on a thumbnail is a tiny PNG, so that a page of a hundred exemplars stays light; its colour is that of the page.
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence

from phosphene.client.words import number
from phosphene.v1.values_pb2 import CorpusImage, ImageRegion, PatchGrid, PatchMap

__all__ = ["framed", "heat_map", "is_whole", "mapped_thumbnail", "photo_style", "region_of"]

_GLOW = bytes((255, 178, 46))
_MOST_OPAQUE = 0.85
# Places of a cut on either side of the middle.
_CUTS = 12
# From this share of a picture on, a frame would say nothing.
_NEARLY_ALL = 0.98
# A map of what the model was shown of a wide photo is wide, within what leaves its patches to be seen.
_LONGEST_ASPECT = 2.0


def heat_map(activations: Sequence[float], grid: PatchGrid, *, over_photo: bool, aspect: float = 1.0) -> str:
    """Return one neuron's activation at each patch as a map, the brighter the stronger.

    Args:
        activations: row by row, `row_count` x `column_count` of them.
        grid: the patches.
        over_photo: whether the map lies on the photo (`photo_style`), or on a dark ground beside it.
        aspect: width / height of what the grid covers; a map is at most twice as long one way as the other.
    """
    aspect = min(_LONGEST_ASPECT, max(1 / _LONGEST_ASPECT, aspect))
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
        f'<figure class="heat" style="--aspect:{aspect:.4f}">'
        f'<div class="{ground}" role="img" aria-label="{said}; peak {number(largest)}">'
        f'<div class="cells" style="{layout}">{cells}</div></div><figcaption>{said}</figcaption></figure>'
    )


def region_of(grid: PatchGrid) -> ImageRegion | None:
    """Return the part of the picture that a grid covers; None where the service does not say, or names no part."""
    region = grid.region
    return region if region.right > region.left and region.bottom > region.top else None


def framed(region: ImageRegion) -> str:
    """Return a frame around a part of a picture, what is outside darkened; empty where the part is all of it."""
    left, top, right, bottom = (
        min(1.0, max(0.0, edge)) for edge in (region.left, region.top, region.right, region.bottom)
    )
    if (right - left) * (bottom - top) > _NEARLY_ALL:
        return ""
    return f'<i style="left:{left:.2%};top:{top:.2%};width:{right - left:.2%};height:{bottom - top:.2%}"></i>'


def photo_style(photo: str, grid: PatchGrid) -> str:
    """Return the CSS of a photo under heat maps: the part that the grid covers, or all of it where that is not known.

    Args:
        photo: as a data URI.
        grid: the patches.
    """
    region = region_of(grid)
    across, from_left = (1.0, 0.0) if region is None else _zoom(region.left, region.right)
    down, from_top = (1.0, 0.0) if region is None else _zoom(region.top, region.bottom)
    return (
        f':root {{ --photo: url("{photo}"); --photo-size: {across:.2%} {down:.2%}; '
        f"--photo-place: {from_left:.2%} {from_top:.2%}; }}\n"
    )


def is_whole(drawn: PatchMap) -> bool:
    """Whether a map has a share for each patch, and covers a part of its image."""
    patch_count = drawn.grid.row_count * drawn.grid.column_count
    return 0 < patch_count == len(drawn.shares) and region_of(drawn.grid) is not None


def mapped_thumbnail(source: str, said: str, image: CorpusImage, drawn: PatchMap) -> str:
    """Return a thumbnail cut to a square, with the map where it belongs; the cut keeps what glows.

    Args:
        source: the thumbnail as a data URI.
        said: what is said of it, escaped.
        image: the image; it has a size.
        drawn: where the neuron fires; it is whole.
    """
    wide, high = max(1.0, image.width / image.height), max(1.0, image.height / image.width)
    region = drawn.grid.region
    box = (
        f"left:{region.left:.2%};top:{region.top:.2%};width:{region.right - region.left:.2%};"
        f"height:{region.bottom - region.top:.2%}"
    )
    rows = _rows(drawn)
    by_column = [sum(share**2 for share in column) for column in zip(*rows, strict=True)]
    by_row = [sum(share**2 for share in row) for row in rows]
    left = 0.0 - wide * _cut(by_column, region.left, region.right, 1 / wide)
    top = 0.0 - high * _cut(by_row, region.top, region.bottom, 1 / high)
    frame = f"width:{wide:.2%};height:{high:.2%};left:{left:.2%};top:{top:.2%}"
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


def _cut(glow: Sequence[int], start: float, end: float, kept: float) -> float:
    """Where to begin a cut of an edge: with the most glow in it, and else as near to the middle as can be.

    Args:
        glow: of each row or column of patches.
        start: where the first of them begins, as a share of the edge.
        end: where the last of them ends.
        kept: the share of the edge that is kept.
    """
    middle = (1 - kept) / 2
    step = (end - start) / max(1, len(glow))

    def kept_glow(cut: float) -> float:
        shown = (
            max(0.0, min(cut + kept, start + (n + 1) * step) - max(cut, start + n * step)) for n in range(len(glow))
        )
        return sum(each * part for each, part in zip(glow, shown, strict=True))

    # By less than a tenth more glow no picture is moved.
    places = sorted((middle * n / _CUTS for n in range(2 * _CUTS + 1)), key=lambda place: abs(place - middle))
    best = max(map(kept_glow, places))
    return next(place for place in places if kept_glow(place) >= 0.9 * best)


def _rows(drawn: PatchMap) -> list[bytes]:
    width = drawn.grid.column_count
    return [drawn.shares[start : start + width] for start in range(0, width * drawn.grid.row_count, width)]


def _png(drawn: PatchMap) -> bytes:
    """Draw a map as a PNG of one pixel for each patch, the more opaque the stronger."""
    width, height = drawn.grid.column_count, drawn.grid.row_count
    lines = b"".join(
        b"\0" + b"".join(_GLOW + bytes((round(_MOST_OPAQUE * share),)) for share in row) for row in _rows(drawn)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
