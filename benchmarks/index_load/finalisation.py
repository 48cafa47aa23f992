"""What a shard costs once its images are encoded: codes, postings, norms, tops, tables, thumbnails, and digests.

Runs in a process of its own: `python -m benchmarks.index_load.finalisation FOLDER NEURONS IMAGES`; prints CPU-seconds
per million images. The codes are the synthetic ones; a thumbnail has 3 kB, an embedding 512 numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.index_load.synthetic import SparseRows, load_rows
from index.image_table import ImageRecord
from index.monosemanticity import CodedEmbeddings, monosemanticity
from index.plan import ShardRows
from index.shard import EncodedRows, write_rows
from index.workspace import Workspace
from phosphene.codes import ImageCode

__all__ = ["encoded_rows", "measure"]

_THUMBNAIL_BYTES = 3_000
_EMBEDDING_WIDTH = 512
_BATCH = 32


def encoded_rows(images: SparseRows) -> EncodedRows:
    """What encoding these images would have left."""
    generator = np.random.default_rng(0)
    pictures = generator.bytes(_THUMBNAIL_BYTES + images.row_count)
    codes, records = [], []
    for row in range(images.row_count):
        part = images.part(row, row + 1)
        codes.append(ImageCode(neuron_ids=part.neuron_ids.astype(np.int32), values=part.values.astype(np.float32)))
        digest = hashlib.sha256(row.to_bytes(8, "big")).hexdigest()
        records.append(
            ImageRecord(
                row=row,
                uri=f"photos/{row // 1000:05d}/{row:08d}.jpg",
                sha256=digest,
                byte_count=50_000 + row,
                width=640,
                height=480,
                label=f"class {row % 1000}",
                caption=None,
                extra=None,
                fvu=0.25,
                quarantine_reason=None,
            )
        )
    embeddings = generator.standard_normal((images.row_count, _EMBEDDING_WIDTH), dtype=np.float32).astype(np.float16)
    batches = [embeddings[start : start + _BATCH] for start in range(0, len(embeddings), _BATCH)]
    return EncodedRows(
        records=records,
        codes=codes,
        thumbnails=[pictures[row : row + _THUMBNAIL_BYTES] for row in range(images.row_count)],
        residuals=batches,
        embeddings=batches,
    )


def measure(images: SparseRows, neuron_count: int) -> dict[str, float]:
    """CPU-seconds per million images: to finish a shard, and to score its neurons for monosemanticity."""
    warm = encoded_rows(images.part(0, 100))
    with tempfile.TemporaryDirectory() as scratch:
        _finish(warm, Path(scratch) / "warm", neuron_count)
        rows = encoded_rows(images)
        # Each in the place of the one before: a virtual machine pays up to as much again where it writes files to
        # memory that it never had before, whoever writes them; hence the least of them.
        shard_s = min(_finish_anew(rows, Path(scratch) / "shard", neuron_count) for _ in range(5))
    coded = CodedEmbeddings(
        offsets=images.offsets,
        neuron_ids=images.neuron_ids.astype(np.uint16),
        values=np.array(images.values),
        embeddings=np.concatenate(rows.embeddings),
    )
    before_s = time.process_time()
    monosemanticity([coded], neuron_count=neuron_count, width=_EMBEDDING_WIDTH)
    score_s = time.process_time() - before_s
    return {name: s / images.row_count * 1e6 for name, s in (("shard_cpu_s", shard_s), ("score_cpu_s", score_s))}


def _finish_anew(rows: EncodedRows, folder: Path, neuron_count: int) -> float:
    cpu_s = _finish(rows, folder, neuron_count)
    shutil.rmtree(folder)
    return cpu_s


def _finish(rows: EncodedRows, folder: Path, neuron_count: int) -> float:
    workspace = Workspace(folder, "cpu")
    before_s = time.process_time()
    shard = ShardRows(number=0, start=0, stop=len(rows.records))
    workspace.write_shard(shard, lambda draft: write_rows(draft, rows, neuron_count=neuron_count))
    return time.process_time() - before_s


def main() -> None:
    """Do it once and say what it took."""
    folder, neuron_count, image_count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    images = load_rows(folder, "images").part(0, image_count)
    sys.stdout.write(json.dumps(measure(images, neuron_count)) + "\n")


if __name__ == "__main__":
    main()
