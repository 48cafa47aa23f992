"""How far codes move when a large JPEG is decoded at a part of its size (`drafted`), on a real encoder."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import phosphene
from phosphene.codes import ImageCode
from phosphene.errors import ImageError

__all__ = ["Moved", "compare", "draft_report"]

_TOP = 10


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The difference that drafting made to one image's code."""

    top_overlap: float
    """Share of the ten strongest neurons that are the same."""
    relative_l2: float
    """Length of the difference of the codes over the length of the code of the whole image."""
    shared_l2: float
    """The same over the neurons that both codes hold: without those that came or went at the edge of the top k."""


def draft_report(bundle: Path, photos: Sequence[bytes]) -> str:
    """Encode photos drafted and whole; say how far the codes are apart.

    Raises:
        ImageError: a photo is not drafted at all, so there is nothing to compare.
    """
    pipeline = phosphene.open_bundle(bundle, thread_count=1)
    drafted, whole = [], []
    for photo in photos:
        prepared = pipeline.prepare(photo)
        if not prepared.drafted:
            raise ImageError("a photo is too small to be drafted; take ones of at least twice the encoder's size")
        drafted.append(prepared)
        whole.append(pipeline.prepare(undraftable(photo)))
    moved = [
        compare(ours, reference)
        for ours, reference in zip(pipeline.run(drafted).codes, pipeline.run(whole).codes, strict=True)
    ]
    overlaps = [one.top_overlap for one in moved]
    return (
        f"{len(moved)} photos of 3 MP: top-{_TOP} overlap mean {statistics.mean(overlaps):.3f}, least "
        f"{min(overlaps):.2f}; relative L2 of codes median {statistics.median(one.relative_l2 for one in moved):.3f}, "
        f"over the neurons that both hold {statistics.median(one.shared_l2 for one in moved):.4f}"
    )


def compare(code: ImageCode, reference: ImageCode) -> Moved:
    """Compare two codes of one image."""
    top, reference_top = set(code.neuron_ids[:_TOP].tolist()), set(reference.neuron_ids[:_TOP].tolist())
    values, reference_values = [
        dict(zip(of.neuron_ids.tolist(), of.values.tolist(), strict=True)) for of in (code, reference)
    ]
    return Moved(
        top_overlap=len(top & reference_top) / max(1, len(reference_top)),
        relative_l2=_relative_l2(values, reference_values, values.keys() | reference_values.keys()),
        shared_l2=_relative_l2(values, reference_values, values.keys() & reference_values.keys()),
    )


def _relative_l2(values: dict[int, float], reference: dict[int, float], neuron_ids: Set[int]) -> float:
    length = math.hypot(*(reference.get(neuron_id, 0.0) for neuron_id in neuron_ids))
    apart = math.hypot(*(values.get(neuron_id, 0.0) - reference.get(neuron_id, 0.0) for neuron_id in neuron_ids))
    return apart / length if length else 0.0


def undraftable(jpeg: bytes) -> bytes:
    """The same pixels as PNG, of which no decoder makes a part."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).convert("RGB").save(stream, "PNG", compress_level=1)
    return stream.getvalue()
