"""Writes the codes of a finished index to Qdrant: what is missing of them, checked, and shown only when complete.

    with open_index(folder) as index, open_qdrant(url) as client:
        push_index(index, client, "scenes")

Killed at any moment and run again, it goes on: a batch whose points are all there is not sent again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import QdrantClient

from index.qdrant.collection import Collection, Point
from index.qdrant.source import CodeSource
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, NotFound, SettingError

__all__ = ["Pushed", "check_metadata", "check_points", "collection_name", "push_index"]

_LAYOUT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID_DIGITS = 16
_BATCH_POINTS = 256
_SAMPLE_POINTS = 64
_COUNT_LIMIT = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push ended with."""

    collection: str
    """The name under which the points are found."""
    point_count: int
    """Images in it: all that the index could use."""
    written_count: int
    """Those that were written this time."""


def push_index(
    index: CodeSource,
    client: QdrantClient,
    name: str,
    *,
    shard_count: int | None = None,
    replica_count: int | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Pushed:
    """Write an index to Qdrant, or what is missing of it.

    Args:
        index: a finished one.
        client: from `index.qdrant.collection.open_qdrant`.
        name: what the collection is called; the index's id follows, so that several indexes go by one name.
        shard_count: parts that Qdrant cuts the collection into; None leaves it to Qdrant.
        replica_count: copies of each part; None leaves it to Qdrant.
        advance: told of rows that are done.

    Raises:
        SettingError: a bad name or number, or one that is in use.
        ArtefactMismatch: what goes by the name is another index.
        ArtefactDamaged: Qdrant holds points that are not the index's.
        Unavailable: Qdrant does not answer; what was written stays, and the same command goes on.
    """
    for option, number in (("--shard-number", shard_count), ("--replication", replica_count)):
        if number is not None and not 1 <= number <= _COUNT_LIMIT:
            raise SettingError(f"{option} is {number}; the limits are 1 to {_COUNT_LIMIT:,}, those of Qdrant")
    collection = Collection(client, collection_name(name, index.id))
    was_published = collection.is_published()
    if not was_published:
        collection.create(_metadata(index), shard_count=shard_count, replica_count=replica_count)
    check_metadata(collection, index)
    written_count = 0
    for rows in _batches(index):
        due = collection.missing(rows)
        if due:
            collection.write([_point(index, row) for row in due])
        written_count += len(due)
        advance(len(rows))
    check_points(collection, index)
    if not was_published:
        collection.publish()
    return Pushed(collection=collection.name, point_count=index.image_count, written_count=written_count)


def collection_name(name: str, index_id: str) -> str:
    """Return what the collection of an index is called; raises `SettingError` for a bad name."""
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"the collection's name {name!r} must be 1-100 characters from letters, digits, '.', '_', '-', and begin "
            "with a letter or digit"
        )
    return f"{name}-{index_id[:_ID_DIGITS]}"


def check_metadata(collection: Collection, index: CodeSource) -> None:
    """Raise `ArtefactMismatch` unless a collection says that it is this index."""
    held, due = collection.metadata(), _metadata(index)
    if not held:
        raise ArtefactMismatch(
            f"Qdrant's collection {collection.name!r} does not say which index it holds: `python -m index push` needs "
            "Qdrant 1.16 or newer, and collections that it made itself"
        )
    differing = sorted(key for key in held.keys() | due.keys() if held.get(key) != due.get(key))
    if differing:
        parts = "; ".join(f"{key} is {held.get(key)}, due {due.get(key)}" for key in differing)
        raise ArtefactMismatch(f"Qdrant's collection {collection.name!r} is another index: {parts}. Push this one")


def _metadata(index: CodeSource) -> dict[str, Any]:
    return {
        "made_by": "phosphene index push",
        "layout": _LAYOUT,
        "index_id": index.id,
        "code_id": index.code_id,
        "row_count": index.row_count,
        "image_count": index.image_count,
        "neuron_count": index.neuron_count,
    }


def _batches(index: CodeSource) -> Iterator[list[int]]:
    """The rows of images that can be used, a batch at a time."""
    for start in range(0, index.row_count, _BATCH_POINTS):
        rows = range(start, min(start + _BATCH_POINTS, index.row_count))
        readable = [row for row in rows if index.image(row).quarantine_reason is None]
        if readable:
            yield readable


def _point(index: CodeSource, row: int) -> Point:
    code = index.code(row)
    kept = ~np.isin(code.neuron_ids, index.left_out_neuron_ids)
    values = code.values[kept].astype(np.float64)
    return Point(
        row=row,
        sha256=index.image(row).sha256,
        code=code,
        unit_ids=code.neuron_ids[kept],
        unit_values=(values / np.sqrt(np.sum(values**2))).astype(np.float32) if len(values) else code.values[kept],
    )


def check_points(collection: Collection, index: CodeSource) -> None:
    """Raise `ArtefactDamaged` unless Qdrant counts as many images, and a sample of them is as it was written."""
    remedy = f"delete the collection {collection.name!r} and its points in Qdrant, and push again"
    count = collection.count()
    if count != index.image_count:
        raise ArtefactDamaged(f"Qdrant counts {count} points; the index has {index.image_count} images: {remedy}")
    wrong = collection.differing([_point(index, row) for row in _sample(index)])
    if wrong:
        raise ArtefactDamaged(f"Qdrant holds other codes than the index for rows {wrong[:10]}: {remedy}")


def _sample(index: CodeSource) -> Sequence[int]:
    rows = np.unique(np.linspace(0, index.row_count - 1, _SAMPLE_POINTS).astype(np.int64)).tolist()
    return [row for row in rows if _is_usable(index, row)]


def _is_usable(index: CodeSource, row: int) -> bool:
    try:
        return index.image(row).quarantine_reason is None
    except NotFound:
        # It was taken down since.
        return False
