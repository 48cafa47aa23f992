"""Proposes images with similar codes from a FAISS index of small sketches; the stored codes decide.

A sketch is the sum over a code's neurons of activation times a fixed random sign vector, scaled to length 1: inner
products of sketches estimate cosines of codes without bias (Charikar, Chen & Farach-Colton 2002; Weinberger et al.
2009), at 512 bytes an image. Dense codes never exist. Candidates are ranked again by the exact cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int8, Int32, Int64, Integer

from index.codes_store import CodesStore
from index.shards import Shards
from phosphene.codes import ImageCode

__all__ = [
    "SKETCH_WIDTH",
    "SketchSearch",
    "code_cosines",
    "sketch_signs",
    "sketches",
    "write_sketch",
]

SKETCH_WIDTH = 256
"""Numbers in a sketch; the estimate's standard error is at most 1/16."""
_FILE = "sketch.faiss"
_CANDIDATE_COUNT = 512
_CANDIDATES_PER_RESULT = 8
_BLOCK_ENTRIES = 1 << 16
_TRAINING_ROWS_PER_LIST = 64
_LISTS_PER_PROBE = 8


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
    out = np.zeros((len(offsets) - 1, SKETCH_WIDTH), dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets))
    if not len(filled):
        return out
    terms = values.astype(np.float32)[:, None] * signs[neuron_ids]
    sums = np.add.reduceat(terms, offsets[filled], axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    out[filled] = sums / np.where(lengths > 0, lengths, 1)
    return out


def write_sketch(
    folder: Path, shards: Shards, *, left_out: Bool[np.ndarray, " neurons"], seed: int, ivf_from_images: int
) -> None:
    """Sketch every row and write the FAISS index `sketch.faiss`.

    Args:
        folder: the index being written.
        shards: the codes of every row.
        left_out: neurons that do not count in similarity: dense ones.
        seed: of the sign vectors.
        ivf_from_images: from this many rows on, the index is cut into inverted lists.
    """
    signs = kept_signs(left_out, seed)
    index: Any = faiss.IndexScalarQuantizer(SKETCH_WIDTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    if shards.row_count >= ivf_from_images:
        index = _trained_ivf(shards, signs)
    for shard in shards:
        for start, stop in shard.codes.row_blocks(_BLOCK_ENTRIES):
            index.add(_row_sketches(shard.codes, start, stop, signs))
    faiss.write_index(index, str(folder / _FILE))


def kept_signs(left_out: Bool[np.ndarray, " neurons"], seed: int) -> Int8[np.ndarray, "neurons 256"]:
    """Return every neuron's signs; zeros for those that are left out."""
    signs: Int8[np.ndarray, "neurons 256"] = np.where(left_out[:, None], np.int8(0), sketch_signs(len(left_out), seed))
    return signs


def _trained_ivf(shards: Shards, signs: Int8[np.ndarray, "neurons 256"]) -> Any:
    list_count = max(1, round(shards.row_count**0.5))
    wanted = min(shards.row_count, _TRAINING_ROWS_PER_LIST * list_count)
    rows = np.unique(np.linspace(0, shards.row_count - 1, wanted).astype(np.int64))
    places = ((shards[number].codes, local) for number, local in map(shards.find, rows.tolist()))
    sample = np.concatenate([_row_sketches(codes, local, local + 1, signs) for codes, local in places])
    quantizer = faiss.IndexFlatIP(SKETCH_WIDTH)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, SKETCH_WIDTH, list_count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(sample)
    index.nprobe = max(1, list_count // _LISTS_PER_PROBE)
    return index


def _row_sketches(
    codes: CodesStore, start: int, stop: int, signs: Int8[np.ndarray, "neurons 256"]
) -> Float32[np.ndarray, "rows 256"]:
    offsets = codes.offsets[start : stop + 1]
    part = slice(int(offsets[0]), int(offsets[-1]))
    return sketches(offsets - offsets[0], codes.neuron_ids[part], codes.values[part], signs)


def _splitmix64(counters: np.ndarray) -> np.ndarray:
    mixed = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class SketchSearch:
    """Nearest rows by the cosine of codes, among those that the sketches propose."""

    def __init__(self, folder: Path, shards: Shards, *, left_out: Bool[np.ndarray, " neurons"], seed: int) -> None:
        """Load `sketch.faiss`, whose digest has been checked."""
        self._shards = shards
        self._left_out = left_out
        self._signs = kept_signs(left_out, seed)
        self._index: Any = faiss.read_index(str(folder / _FILE))

    def nearest(
        self,
        neuron_ids: Int32[np.ndarray, " active"],
        values: Float32[np.ndarray, " active"],
        count: int,
        *,
        excluded_rows: Int64[np.ndarray, " excluded"],
    ) -> tuple[Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]:
        """Return up to `count` rows and their cosines, best first, ties by row; rows that share no neuron never."""
        query = sketches(np.array([0, len(neuron_ids)], dtype=np.int64), neuron_ids, values, self._signs)
        wanted = min(self._shards.row_count, max(_CANDIDATE_COUNT, _CANDIDATES_PER_RESULT * count))
        _, found = self._index.search(query, wanted)
        rows = np.setdiff1d(found[0][found[0] >= 0], excluded_rows)
        code = ImageCode(neuron_ids=neuron_ids, values=values)
        cosines = code_cosines(code, self._shards, rows, left_out=self._left_out)
        order = np.lexsort((rows, -cosines))[:count]
        order = order[cosines[order] > 0]
        return rows[order], cosines[order]


def code_cosines(
    code: ImageCode, shards: Shards, rows: Int64[np.ndarray, " rows"], *, left_out: Bool[np.ndarray, " neurons"]
) -> Float64[np.ndarray, " rows"]:
    """Return the cosine of a code with each row's stored code, over the neurons that count; 0 where one is empty."""
    weights = np.zeros(len(left_out))
    weights[code.neuron_ids] = code.values
    weights[left_out] = 0.0
    cosines = np.zeros(len(rows))
    for number, places in shards.parts(rows):
        shard = shards[number]
        cosines[places] = _cosines(weights, shard.codes, rows[places] - shard.rows.start, left_out)
    return cosines


def _cosines(
    weights: Float64[np.ndarray, " neurons"],
    codes: CodesStore,
    rows: Int64[np.ndarray, " rows"],
    left_out: Bool[np.ndarray, " neurons"],
) -> Float64[np.ndarray, " rows"]:
    begins = codes.offsets[rows]
    lengths = codes.offsets[rows + 1] - begins
    owner = np.repeat(np.arange(len(rows)), lengths)
    entries = np.arange(len(owner)) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    neuron_ids = codes.neuron_ids[entries]
    values = np.where(left_out[neuron_ids], 0.0, codes.values[entries].astype(np.float64))
    products = np.bincount(owner, weights=weights[neuron_ids] * values, minlength=len(rows))
    norms = np.sqrt(np.bincount(owner, weights=values**2, minlength=len(rows))) * np.linalg.norm(weights)
    return products / np.where(norms > 0, norms, 1.0)
