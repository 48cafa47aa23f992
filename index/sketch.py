"""Finds images with similar codes: a FAISS index of small sketches proposes, the stored codes decide.

A sketch is the sum over a code's neurons of activation times a fixed random sign vector, scaled to length 1: inner
products of sketches estimate cosines of codes without bias (Charikar, Chen & Farach-Colton 2002; Weinberger et al.
2009), at 512 bytes an image. Dense codes never exist. Candidates are ranked again by the exact cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float16, Float32, Float64, Int8, Int32, Int64

from index.codes_store import CodesStore
from index.values import SimilarImage
from phosphene.codes import ImageCode

__all__ = [
    "SKETCH_WIDTH",
    "SimilarImages",
    "exact_cosines",
    "sketch_recall",
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
    neuron_ids: Int32[np.ndarray, " entries"],
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


def write_sketch(folder: Path, codes: CodesStore, neuron_count: int, *, seed: int, ivf_from_images: int) -> None:
    """Sketch every row and write the FAISS index `sketch.faiss`.

    Args:
        folder: the index being written.
        codes: the codes of every row.
        neuron_count: neurons of the sparse autoencoder.
        seed: of the sign vectors.
        ivf_from_images: from this many rows on, the index is cut into inverted lists.
    """
    signs = sketch_signs(neuron_count, seed)
    index: Any = faiss.IndexScalarQuantizer(SKETCH_WIDTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    if codes.row_count >= ivf_from_images:
        index = _trained_ivf(codes, signs)
    for start, stop in codes.row_blocks(_BLOCK_ENTRIES):
        index.add(_row_sketches(codes, start, stop, signs))
    faiss.write_index(index, str(folder / _FILE))


def _trained_ivf(codes: CodesStore, signs: Int8[np.ndarray, "neurons 256"]) -> Any:
    list_count = max(1, round(codes.row_count**0.5))
    wanted = min(codes.row_count, _TRAINING_ROWS_PER_LIST * list_count)
    rows = np.unique(np.linspace(0, codes.row_count - 1, wanted).astype(np.int64))
    sample = np.concatenate([_row_sketches(codes, int(row), int(row) + 1, signs) for row in rows])
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


class SimilarImages:
    """Nearest rows by the cosine of codes."""

    def __init__(self, folder: Path, codes: CodesStore, neuron_count: int, *, seed: int) -> None:
        """Load `sketch.faiss`, whose digest has been checked."""
        self._codes = codes
        self._signs = sketch_signs(neuron_count, seed)
        self._index: Any = faiss.read_index(str(folder / _FILE))

    def nearest(self, code: ImageCode, count: int, *, exclude_row: int | None = None) -> list[SimilarImage]:
        """Return up to `count` rows by descending cosine with `code`, ties by row; rows that share no neuron never.

        Args:
            code: of any image, live or stored.
            count: at least 1.
            exclude_row: a row to leave out: the query's own.
        """
        if not len(code):
            return []
        whole = np.array([0, len(code)], dtype=np.int64)
        query = sketches(whole, code.neuron_ids, code.values, self._signs)
        candidate_count = min(self._codes.row_count, max(_CANDIDATE_COUNT, _CANDIDATES_PER_RESULT * count))
        _, found = self._index.search(query, candidate_count)
        rows = np.unique(found[0][found[0] >= 0])
        if exclude_row is not None:
            rows = rows[rows != exclude_row]
        cosines = exact_cosines(code, self._codes, rows)
        order = np.lexsort((rows, -cosines))[:count]
        return [self._similar(code, int(rows[place]), float(cosines[place])) for place in order if cosines[place] > 0]

    def _similar(self, code: ImageCode, row: int, cosine: float) -> SimilarImage:
        other = self._codes.code(row)
        shared, in_code, in_other = np.intersect1d(
            code.neuron_ids, other.neuron_ids, assume_unique=True, return_indices=True
        )
        order = np.lexsort((shared, -code.values[in_code] * other.values[in_other]))
        return SimilarImage(
            row=row, similarity=min(cosine, 1.0), shared_neuron_ids=tuple(int(shared[place]) for place in order)
        )


def exact_cosines(code: ImageCode, codes: CodesStore, rows: Int64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """Return the cosine of a code with the stored code of each row; 0 where one is empty."""
    begins, lengths = codes.offsets[rows], codes.offsets[rows + 1] - codes.offsets[rows]
    owner = np.repeat(np.arange(len(rows)), lengths)
    entries = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begins, lengths)
    neuron_ids, values = codes.neuron_ids[entries], codes.values[entries].astype(np.float64)
    by_id = np.argsort(code.neuron_ids)
    sorted_ids, sorted_values = code.neuron_ids[by_id], code.values[by_id].astype(np.float64)
    places = np.minimum(np.searchsorted(sorted_ids, neuron_ids), len(sorted_ids) - 1)
    matched = np.where(sorted_ids[places] == neuron_ids, sorted_values[places], 0.0)
    products = np.bincount(owner, weights=matched * values, minlength=len(rows))
    norms = np.sqrt(np.bincount(owner, weights=values**2, minlength=len(rows))) * np.linalg.norm(sorted_values)
    return products / np.where(norms > 0, norms, 1.0)


def sketch_recall(similar: SimilarImages, codes: CodesStore, *, queries: int = 32, depth: int = 10) -> float:
    """Return the share of the exact nearest rows that the sketch index finds, over evenly spaced rows; 1 if none fires.

    Ties count as found: a row as near as the last of the exact ones is as good.
    """
    firing = np.flatnonzero(np.diff(codes.offsets))
    found, wanted = 0, 0
    for place in np.unique(np.linspace(0, len(firing) - 1, min(len(firing), queries)).astype(np.int64)):
        row = int(firing[place])
        code = codes.code(row)
        exact = np.concatenate(
            [exact_cosines(code, codes, np.arange(start, stop)) for start, stop in codes.row_blocks()]
        )
        exact[row] = 0.0
        best = np.sort(exact)[::-1][:depth]
        best = best[best > 0]
        if len(best):
            wanted += len(best)
            nearest = similar.nearest(code, len(best), exclude_row=row)
            found += sum(image.similarity >= best[-1] - 1e-9 for image in nearest)
    return found / wanted if wanted else 1.0
