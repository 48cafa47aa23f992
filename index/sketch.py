"""Small sketches of codes, in which FAISS proposes images with similar codes; the stored codes decide.

A sketch is the sum over a code's neurons of activation times a fixed random sign vector, scaled to length 1: inner
products of sketches estimate cosines of codes without bias (Charikar, Chen & Farach-Colton 2002; Weinberger et al.
2009). Dense codes never exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int8, Int64, Integer

from index.codes_store import CodesStore
from index.retrieval.sketch_kernels import add_signs
from index.shards import Shards
from index.vector_index import VectorLayout, write_vectors

__all__ = ["SKETCH_FILE", "SKETCH_WIDTH", "SketchSource", "kept_signs", "sketch_signs", "sketches", "write_sketch"]

SKETCH_WIDTH = 256
"""Numbers in a sketch; the estimate's standard error is at most 1/16."""
SKETCH_FILE = "sketch.faiss"
_BLOCK_ENTRIES = 1 << 18


def sketch_signs(neuron_count: int, seed: int) -> Int8[np.ndarray, "neurons 256"]:
    """Return every neuron's fixed vector of +1 and -1.

    Bit b of neuron i is a bit of the SplitMix64 hash of (seed, i, word): the same for any neuron count, library version
    or machine (Steele, Lea & Flood 2014).
    """
    words = SKETCH_WIDTH // 64
    counters = np.arange(neuron_count * words, dtype=np.uint64).reshape(neuron_count, words)
    hashed = _splitmix64(counters + _splitmix64(np.array([seed], dtype=np.uint64)))
    shifts = np.arange(64, dtype=np.uint64)
    bits = (hashed[:, :, None] >> shifts) & np.uint64(1)
    return (2 * bits.astype(np.int8) - 1).reshape(neuron_count, SKETCH_WIDTH)


def sketches(
    offsets: Int64[np.ndarray, " rows_and_one"],
    neuron_ids: Integer[np.ndarray, " entries"],
    values: Float16[np.ndarray, " entries"] | Float32[np.ndarray, " entries"],
    signs: Int8[np.ndarray, "neurons 256"],
) -> Float32[np.ndarray, "rows 256"]:
    """Sketch codes in CSR form, given with offsets that begin at 0; an empty code has the zero sketch."""
    out = np.empty((len(offsets) - 1, SKETCH_WIDTH), dtype=np.float32)
    add_signs(np.array(offsets, dtype=np.int64), neuron_ids.astype(np.int32), values.astype(np.float32), signs, out)
    return out


def kept_signs(left_out: Bool[np.ndarray, " neurons"], seed: int) -> Int8[np.ndarray, "neurons 256"]:
    """Return every neuron's signs; zeros for those that are left out."""
    signs: Int8[np.ndarray, "neurons 256"] = np.where(left_out[:, None], np.int8(0), sketch_signs(len(left_out), seed))
    return signs


class SketchSource:
    """The sketches of every row, made when they are asked for."""

    width = SKETCH_WIDTH

    def __init__(self, shards: Shards, *, left_out: Bool[np.ndarray, " neurons"], seed: int) -> None:
        """Take codes, the neurons that do not count, and the seed of the sign vectors."""
        self._shards, self._signs = shards, kept_signs(left_out, seed)

    @property
    def row_count(self) -> int:
        """Rows of the index."""
        return self._shards.row_count

    def take(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows 256"]:
        """Return the sketches of some rows, rising."""
        taken = np.empty((len(rows), SKETCH_WIDTH), dtype=np.float32)
        for number, places in self._shards.parts(rows):
            shard = self._shards[number]
            taken[places] = sketches(*shard.codes.take(rows[places] - shard.rows.start), self._signs)
        return taken

    def shards(self) -> Iterator[Iterable[tuple[int, Float32[np.ndarray, "rows 256"]]]]:
        """Yield, shard by shard, the first row and the sketches of blocks."""
        for shard in self._shards:
            yield self._blocks(shard.codes, shard.rows.start)

    def _blocks(self, codes: CodesStore, first: int) -> Iterator[tuple[int, Float32[np.ndarray, "rows 256"]]]:
        for start, stop in codes.row_blocks(_BLOCK_ENTRIES):
            offsets = codes.offsets[start : stop + 1]
            part = slice(int(offsets[0]), int(offsets[-1]))
            yield first + start, sketches(offsets - offsets[0], codes.neuron_ids[part], codes.values[part], self._signs)


def write_sketch(
    folder: Path, shards: Shards, *, left_out: Bool[np.ndarray, " neurons"], seed: int, layout: VectorLayout
) -> None:
    """Sketch every row and write the FAISS index `sketch.faiss`.

    Args:
        folder: the index being written.
        shards: the codes of every row.
        left_out: neurons that do not count in similarity: dense ones.
        seed: of the sign vectors.
        layout: flat, or inverted lists.
    """
    write_vectors(folder / SKETCH_FILE, SketchSource(shards, left_out=left_out, seed=seed), layout)


def _splitmix64(counters: np.ndarray) -> np.ndarray:
    mixed = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
