"""What it takes to read random rows of an index: the codes of 100, the thumbnails of 24; prints milliseconds.

Runs in a process of its own: `python -m benchmarks.index_load.reads FOLDER NEURONS IMAGES`. The codes are the synthetic
ones, a thumbnail has 3 kB; both lie in shards on disk as a job leaves them, and in the system's cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from benchmarks.index_load.finalisation import encoded_rows
from benchmarks.index_load.synthetic import SparseRows, load_rows
from benchmarks.samples import Samples
from index.plan import SHARDS_FOLDER, plan_shards
from index.shard import write_rows
from index.shards import Shards, open_shards
from index.thumbnails import ThumbnailStore

__all__ = ["READ_FIGURES", "measure", "measure_reads", "read_codes", "store"]

_CODE_COUNT, _THUMBNAIL_COUNT = 100, 24
_DRAW_COUNT = 300
_SHARD_COUNT = 4
_NEURONS, _IMAGES = 16_384, 65_536


def store(images: SparseRows, folder: Path, *, neuron_count: int) -> Shards:
    """Write the images into four shards, as encoding would have."""
    shards = plan_shards(images.row_count, -(-images.row_count // _SHARD_COUNT))
    for shard in shards:
        target = folder / SHARDS_FOLDER / shard.name
        target.mkdir(parents=True)
        write_rows(target, encoded_rows(images.part(shard.start, shard.stop)), neuron_count=neuron_count)
    return open_shards(folder, shards)


def read_codes(shards: Shards, rows: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Neurons and activations of rows of the index, by row."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for number, places in shards.parts(rows):
        shard, chosen = shards[number], rows[places]
        offsets, neuron_ids, values = shard.codes.take(chosen - shard.rows.start)
        bounds = offsets.tolist()
        for place, row in enumerate(chosen.tolist()):
            part = slice(bounds[place], bounds[place + 1])
            found[row] = neuron_ids[part], values[part]
    return found


def measure(shards: Shards) -> dict[str, float]:
    """Medians over draws of random rows, in milliseconds."""
    generator = np.random.default_rng(0)
    thumbnails = ThumbnailStore(shards)

    def median_ms(count: int, read: Callable[[np.ndarray], object]) -> float:
        took_s = []
        for _ in range(_DRAW_COUNT):
            rows = generator.choice(shards.row_count, size=min(count, shards.row_count), replace=False)
            began_s = time.perf_counter()
            read(rows)
            took_s.append(time.perf_counter() - began_s)
        return statistics.median(took_s) * 1000

    return {
        "codes_ms": median_ms(_CODE_COUNT, lambda rows: read_codes(shards, rows)),
        "single_codes_ms": median_ms(_CODE_COUNT, lambda rows: [shards.code(int(row)) for row in rows]),
        "thumbnails_ms": median_ms(_THUMBNAIL_COUNT, lambda rows: [thumbnails.thumbnail(int(row)) for row in rows]),
    }


def measure_reads(
    codes: Path, run_once: Callable[..., dict[str, Any]], samples: Samples, remark: Callable[[str], None], rounds: int
) -> None:
    """Measure in processes of their own.

    Args:
        codes: folder of synthetic codes, at least 65,536 of them.
        run_once: runs a module of this package in a process of its own, with these arguments.
        samples: filled.
        remark: says something to people.
        rounds: times that everything is done.
    """
    for _ in range(rounds):
        for name, took_ms in run_once("reads", str(codes), str(_NEURONS), str(_IMAGES)).items():
            samples.add(f"reads.{name}", took_ms)
    remark(
        f"random rows: {_CODE_COUNT} codes in {samples['reads.codes_ms']:.3f} ms, one by one in "
        f"{samples['reads.single_codes_ms']:.3f} ms; {_THUMBNAIL_COUNT} thumbnails in "
        f"{samples['reads.thumbnails_ms']:.3f} ms"
    )


READ_FIGURES: tuple[Figure, ...] = (
    Figure(
        name=f"codes of {_CODE_COUNT} random rows, ms",
        value=lambda samples: samples["reads.codes_ms"],
        bar=0.2,
        aim="0.2",
        sense="<=",
    ),
    Figure(
        name=f"{_THUMBNAIL_COUNT} random thumbnails, ms",
        value=lambda samples: samples["reads.thumbnails_ms"],
        bar=0.5,
        aim="0.5",
        sense="<=",
    ),
)
"""In the order of the issue."""


def main() -> None:
    """Write the shards, and say what reading took."""
    folder, neuron_count, image_count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    images = load_rows(folder, "images").part(0, image_count)
    with tempfile.TemporaryDirectory() as scratch:
        answer = measure(store(images, Path(scratch), neuron_count=neuron_count))
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
