"""FAISS over unit vectors by row: flat, or inverted lists with a product quantiser; knows nothing of what they mean.

Below a number of rows the vectors themselves are kept, in float16. From there on, one quantiser is trained on a sample
of all shards, each shard fills lists of its own with it, and the lists are joined in the order of the shards: the same
bytes as if all rows had been added at once. A search proposes rows; whoever holds the exact vectors ranks them.

Fast-scan keeps 4 bits for every 4 numbers and adds table look-ups in registers (André, Kermarrec & Le Scouarnec 2017).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, assert_never, runtime_checkable

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from index.effort import Effort
from index.faiss_device import GPU_PROPOSAL_LIMIT, on_device
from index.faiss_files import save_faiss
from index.plan import Quantiser

__all__ = ["VectorIndex", "VectorLayout", "VectorSource", "build_vectors", "plan_layout", "write_vectors"]

_TRAINING_ROWS_PER_LIST = 64
_TRAINING_ROUNDS = 10
_FAST_SCAN_WIDTH, _EIGHT_BIT_WIDTH = 4, 8


@runtime_checkable
class VectorSource(Protocol):
    """Vectors of norm 1 by row of the index; zeros for a row without one, which is never proposed by lists."""

    @property
    def row_count(self) -> int:
        """Rows of the index."""

    @property
    def width(self) -> int:
        """Numbers in a vector."""

    def take(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows width"]:
        """Return the vectors of some rows, rising."""

    def shards(self) -> Iterator[Iterable[tuple[int, Float32[np.ndarray, "rows width"]]]]:
        """Yield, shard by shard, the first row and the vectors of consecutive blocks."""


@dataclass(frozen=True, kw_only=True)
class VectorLayout:
    """How vectors are kept."""

    list_count: int
    """Inverted lists; 0: flat."""
    quantiser: Quantiser
    """What the lists hold of a vector."""


def plan_layout(row_count: int, *, ivf_from_images: int, quantiser: Quantiser) -> VectorLayout:
    """Choose flat, or about as many lists as a list has rows."""
    return VectorLayout(
        list_count=max(1, round(row_count**0.5)) if row_count >= ivf_from_images else 0, quantiser=quantiser
    )


def write_vectors(file: Path, source: VectorSource, layout: VectorLayout) -> None:
    """Build over all rows and write the file. FAISS runs on the threads that the caller has set."""
    save_faiss(file, build_vectors(source, layout))


def build_vectors(source: VectorSource, layout: VectorLayout) -> Any:
    """Build the FAISS index over all rows."""
    empty = _trained(source, layout) if layout.list_count else None
    if empty is None:
        flat: Any = faiss.IndexScalarQuantizer(source.width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for blocks in source.shards():
            for _, vectors in blocks:
                flat.add(vectors)
        return flat
    merged = faiss.clone_index(empty)
    for blocks in source.shards():
        merged.merge_from(_filled(empty, blocks), 0)
    match layout.quantiser:
        case Quantiser.FAST_SCAN:
            # Shares the coarse quantiser, which then belongs to `merged`.
            scanned: Any = faiss.IndexIVFPQFastScan(merged)
            scanned.referenced_objects = [merged]
            return scanned
        case Quantiser.EIGHT_BIT:
            return merged
        case _:
            assert_never(layout.quantiser)


def _trained(source: VectorSource, layout: VectorLayout) -> Any:
    """An index without rows, trained on evenly spaced ones, of the kind of the shards' lists; None: too few vectors."""
    match layout.quantiser:
        case Quantiser.FAST_SCAN:
            parts, bits = _part_count(source.width, _FAST_SCAN_WIDTH), 4
        case Quantiser.EIGHT_BIT:
            parts, bits = _part_count(source.width, _EIGHT_BIT_WIDTH), 8
        case _:
            assert_never(layout.quantiser)
    index: Any = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(source.width), source.width, layout.list_count, parts, bits, faiss.METRIC_INNER_PRODUCT
    )
    # Fast-scan looks up one table for all lists; FAISS has no 8-bit lists without residuals on a GPU.
    index.by_residual = layout.quantiser is Quantiser.EIGHT_BIT
    index.cp.niter = _TRAINING_ROUNDS
    # A short sample is no reason for FAISS to write to stderr.
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    wanted = min(source.row_count, max(_TRAINING_ROWS_PER_LIST * layout.list_count, 256 << bits))
    rows = np.unique(np.linspace(0, source.row_count - 1, wanted).astype(np.int64))
    sample = source.take(rows)
    filled = sample[np.any(sample != 0, axis=1)]
    if len(filled) < max(layout.list_count, 1 << bits):
        return None
    index.train(filled)
    return index


def _filled(empty: Any, blocks: Iterable[tuple[int, Float32[np.ndarray, "rows width"]]]) -> Any:
    """The lists of one shard."""
    part = faiss.clone_index(empty)
    for start, vectors in blocks:
        places = np.flatnonzero(np.any(vectors != 0, axis=1))
        part.add_with_ids(vectors[places], places + start)
    return part


def _part_count(width: int, part_width: int) -> int:
    """Parts of about `part_width` numbers that make up the width."""
    return next(parts for parts in range(max(1, width // part_width), 0, -1) if width % parts == 0)


class VectorIndex:
    """Proposes rows by their vectors; several threads may ask at a time."""

    def __init__(self, file: Path, *, device: str = "cpu") -> None:
        """Load a file whose digest has been checked; vectors stay on the disk, mapped, and a GPU gets a copy.

        Raises:
            SettingError: the device cannot hold it.
        """
        self._index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        self._copy: Any = None if device == "cpu" else on_device(faiss.read_index(str(file)), device)
        self.list_count = int(getattr(self._index, "nlist", 0))
        self.row_count, self.width = int(self._index.ntotal), int(self._index.d)
        self.quick_count = self.row_count if device == "cpu" else min(self.row_count, GPU_PROPOSAL_LIMIT)
        """Most rows that the device proposes; more come from the disk."""
        # FAISS on a GPU is not thread-safe, not even for searches.
        self._turn = threading.Lock()

    def propose(
        self, vector: Float32[np.ndarray, " width"], effort: Effort, *, count: int = 0
    ) -> tuple[Int64[np.ndarray, " found"], Float32[np.ndarray, " found"]]:
        """Return rows with large inner products and the estimates of these, best first; -1 where there are fewer.

        Args:
            vector: of norm 1.
            effort: how far to look; what a GPU cannot find so many of is looked for on the disk.
            count: at least so many rows, where the index has them.
        """
        # Set for this thread alone: an answer must not depend on how many processors are free.
        faiss.omp_set_num_threads(1)
        options: dict[str, Any] = {}
        probe_count = min(effort.probe_count, self.list_count)
        if self.list_count:
            options["params"] = faiss.IVFSearchParameters()
            options["params"].nprobe = max(1, probe_count)
        # Fewer than the effort says would find a smaller share than was measured with it.
        wanted = max(1, min(max(effort.candidate_count, count), self.row_count))
        if self._copy is not None and wanted <= GPU_PROPOSAL_LIMIT and probe_count <= GPU_PROPOSAL_LIMIT:
            with self._turn:
                estimates, rows = self._copy.search(vector[None], wanted, **options)
        else:
            estimates, rows = self._index.search(vector[None], wanted, **options)
        return rows[0], estimates[0]
