"""The postings of a shard on disk, and activations in the order of the whole corpus; knows nothing of images.

`postings/` and `row_norms.npy` hold what `index.retrieval.postings` makes of a shard's codes. A posting's activation is
a little off; where that decides, the stored code is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64

from index.arrays import map_array
from index.codes_store import CodesStore
from index.retrieval.postings import ShardPostings, build_postings, row_norms
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged

__all__ = ["count_below", "exact_values", "read_norms", "read_postings", "stored_bound", "write_postings"]

_FOLDER = "postings"
_NORMS = "row_norms.npy"
_LARGEST = float(np.finfo(np.float16).max)


def write_postings(folder: Path, codes: CodesStore, neuron_count: int) -> None:
    """Write `folder`/postings and `folder`/row_norms.npy.

    Args:
        folder: the shard being written.
        codes: its codes.
        neuron_count: neurons of the sparse autoencoder; every neuron id is smaller.
    """
    postings = build_postings(codes.offsets, codes.neuron_ids, codes.values, neuron_count=neuron_count)
    target = folder / _FOLDER
    target.mkdir()
    save_array(target / "neuron_starts.npy", postings.neuron_starts)
    save_array(target / "words.npy", postings.words)
    save_array(target / "scale.npy", np.array(postings.scale, dtype=np.float32))
    save_array(folder / _NORMS, row_norms(codes.offsets, codes.values))


def read_postings(folder: Path, row_count: int) -> ShardPostings:
    """Map `folder`/postings of a shard with so many rows.

    Raises:
        ArtefactDamaged: the arrays do not fit together.
    """
    source = folder / _FOLDER
    neuron_starts = map_array(source / "neuron_starts.npy", np.int64, 1)
    words = map_array(source / "words.npy", np.uint32, 1)
    scale = map_array(source / "scale.npy", np.float32, 0)
    if int(neuron_starts[-1]) != len(words):
        raise ArtefactDamaged(
            f"{source}: neuron_starts.npy names {int(neuron_starts[-1])} postings; words.npy has {len(words)}: "
            "build the index again"
        )
    return ShardPostings(neuron_starts=neuron_starts, words=words, scale=float(scale), row_count=row_count)


def read_norms(folder: Path) -> Float32[np.ndarray, " rows"]:
    """Map `folder`/row_norms.npy.

    Raises:
        ArtefactDamaged: it is no such array.
    """
    return map_array(folder / _NORMS, np.float32, 1)


def exact_values(
    postings: ShardPostings, codes: CodesStore, neuron_id: int
) -> tuple[Int64[np.ndarray, " firing"], Float16[np.ndarray, " firing"]]:
    """Return the rows of a shard on which a neuron fires, rising, and its stored activations there."""
    rows = postings.rows(neuron_id).astype(np.int64)
    return rows, codes.values_of(neuron_id, rows)


def stored_bound(value: float) -> float:
    """Return the activation that a value is compared as with stored ones: in float16, as they are."""
    return float(np.float16(min(value, _LARGEST)))


def count_below(shards: Sequence[tuple[ShardPostings, CodesStore]], neuron_id: int, value: float) -> tuple[int, int]:
    """Count the images on which a neuron's stored activation is smaller than a value, and all on which it fires.

    The value is rounded to float16 first, so that an image of the corpus meets its own stored activation.
    """
    bound = stored_bound(value)
    below, firing = 0, 0
    for postings, codes in shards:
        values = postings.values(neuron_id)
        # Twice the scale is more than a word can be off.
        surely = values < bound - 2 * postings.scale
        doubtful = ~surely & (values < bound + 2 * postings.scale)
        below += int(surely.sum())
        if doubtful.any():
            rows = postings.rows(neuron_id)[doubtful].astype(np.int64)
            below += int((codes.values_of(neuron_id, rows) < bound).sum())
        firing += len(values)
    return below, firing
