"""The strongest images of every neuron from a stream of codes: ours, or dense torch.topk; prints images per second.

Each runs in a process of its own: `python -m benchmarks.index_load.streamed {ours,torch} FOLDER NEURONS IMAGES`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.index_load.synthetic import SparseRows, load_rows
from index.tops import Tops, merge_tops, top_images

__all__ = ["dense_tops", "our_tops"]

_COUNT = 100
_SHARD_ROWS = 65_536
_DENSE_ROWS = 1_024


def our_tops(images: SparseRows, neuron_count: int) -> Tops:
    """Shard by shard, merged as they come."""
    merged: Tops | None = None
    for start in range(0, images.row_count, _SHARD_ROWS):
        part = images.part(start, min(start + _SHARD_ROWS, images.row_count))
        found = top_images(part.offsets, part.neuron_ids, part.values, neuron_count=neuron_count, limit=_COUNT)
        found = found.moved(start)
        merged = found if merged is None else merge_tops([merged, found], limit=_COUNT)
    assert merged is not None
    return merged


def dense_tops(images: SparseRows, neuron_count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch by batch: a dense batch beside the best so far, through torch.topk; values and rows [neurons, count]."""
    best = torch.zeros(neuron_count, _COUNT)
    rows = torch.full((neuron_count, _COUNT), -1)
    for start in range(0, images.row_count, _DENSE_ROWS):
        part = images.part(start, min(start + _DENSE_ROWS, images.row_count))
        dense = torch.zeros(neuron_count, part.row_count)
        owners = torch.from_numpy(np.repeat(np.arange(part.row_count), np.diff(part.offsets)))
        ids = torch.from_numpy(part.neuron_ids.astype(np.int64))
        dense[ids, owners] = torch.from_numpy(part.values.astype(np.float32))
        values, places = torch.cat([best, dense], dim=1).topk(_COUNT, dim=1)
        numbers = torch.cat([rows, torch.arange(start, start + part.row_count).expand(neuron_count, -1)], dim=1)
        best, rows = values, numbers.gather(1, places)
    return best, rows


def main() -> None:
    """Do it once and say how fast it was."""
    who, folder, neuron_count, image_count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    images = load_rows(folder, "images").part(0, image_count)
    # Read from the disk by nobody's time.
    images = SparseRows(
        offsets=np.array(images.offsets), neuron_ids=np.array(images.neuron_ids), values=np.array(images.values)
    )
    find = our_tops if who == "ours" else dense_tops
    # Kernels are compiled, or loaded, by nobody's time.
    find(images.part(0, 1), neuron_count)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    find(images, neuron_count)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    sys.stdout.write(json.dumps({"per_s": image_count / wall_s, "per_cpu_s": image_count / cpu_s}) + "\n")


if __name__ == "__main__":
    main()
