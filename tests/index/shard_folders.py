"""Shards on disk from codes made up by a test, cut where it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from index.codes_store import write_codes
from index.image_table import ImageRecord, write_images
from index.image_vectors import EMBEDDINGS_FILE
from index.plan import plan_shards
from index.shard import write_turned
from index.shards import Shards, open_shards
from phosphene.codes import ImageCode


def write_shards(
    folder: Path,
    codes: Sequence[ImageCode],
    *,
    neuron_count: int,
    size: int = 64,
    records: Sequence[ImageRecord] | None = None,
    embeddings: np.ndarray | None = None,
) -> Shards:
    """Write `codes` under `folder`/shards in shards of `size` rows."""
    if records is None:
        records = [image_record(row) for row in range(len(codes))]
    rows = plan_shards(len(codes), size)
    for shard in rows:
        part = slice(shard.start, shard.stop)
        target = folder / "shards" / shard.name
        target.mkdir(parents=True)
        write_images(target, records[part])
        write_codes(target, codes[part], neuron_count=neuron_count)
        write_turned(target, [record.sha256 for record in records[part]], neuron_count=neuron_count)
        if embeddings is not None:
            np.save(target / EMBEDDINGS_FILE, embeddings[part].astype(np.float16))
    return open_shards(folder, rows)


def image_record(row: int, **changes: object) -> ImageRecord:
    """A readable image of its own."""
    plain: dict[str, object] = {
        "row": row,
        "uri": f"{row}.png",
        "sha256": f"{row:064x}",
        "byte_count": 1,
        "width": 8,
        "height": 8,
        "label": None,
        "caption": None,
        "extra": None,
        "fvu": 0.5,
        "quarantine_reason": None,
    }
    return ImageRecord(**plain | changes)  # type: ignore[arg-type]
