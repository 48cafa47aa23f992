"""What every contestant is measured with, in a process of its own: the task, the clock, a pass over all queries.

Runs in Phosphene's environment and in every peer's: needs numpy alone. The process builds, says what that took, and
then makes one pass for each line of settings that it reads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.index_load.synthetic import Recipe, SparseRows, dense_neurons, load_rows

__all__ = ["DEPTH", "Contestant", "Task", "compete", "unit_rows"]

DEPTH = 10
"""Similar images asked for."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant is asked to index."""

    folder: str
    """Where the images and queries are."""
    scratch: str
    """A folder of its own, which exists and is empty."""
    recipe: dict[str, int]
    """How they were made."""

    def to_json(self) -> str:
        """As the contestants' command line takes it."""
        return json.dumps(asdict(self))


class Contestant(Protocol):
    """One library with the images indexed."""

    stored_bytes: int
    """Bytes of the index, stored vectors included."""
    notes: dict[str, float]
    """What else it measured while it was made."""

    def prepare(self, settings: dict[str, Any], queries: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        """Queries in the library's own form, dense neurons left out; not timed."""

    def ask(self, query: Any) -> Any:
        """The most similar images of one query, by cosine; timed."""

    def rows(self, answer: Any) -> list[int]:
        """The rows of an answer; not timed."""


def compete(make: Callable[[Task, SparseRows, np.ndarray], Contestant]) -> None:
    """Build, then answer lines of settings until there are no more; the last words of every contestant's process.

    Args:
        make: gives the contestant for a task, its images and what neurons are too dense; timed as the build.
    """
    task = Task(**json.loads(sys.argv[1]))
    folder = Path(task.folder)
    images = load_rows(folder, "images")
    is_dense = dense_neurons(images, Recipe(**task.recipe))
    queries = _queries(load_rows(folder, "queries"))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    contestant = make(task, images, is_dense)
    _say(
        build_wall_s=time.perf_counter() - wall_s,
        build_cpu_s=time.process_time() - cpu_s,
        stored_bytes=contestant.stored_bytes,
        **contestant.notes,
    )
    for line in sys.stdin:
        prepared = contestant.prepare(json.loads(line), _without(queries, is_dense))
        contestant.ask(prepared[0])
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        answers = [contestant.ask(query) for query in prepared]
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        rows = [contestant.rows(answer) for answer in answers]
        _say(wall_s=wall_s / len(rows), cpu_s=cpu_s / len(rows), rows=rows)
    os._exit(0)


def unit_rows(images: SparseRows, is_dense: np.ndarray) -> SparseRows:
    """The images without dense neurons at unit norm, neurons rising, values float32: inner products are cosines."""
    kept = images.without(is_dense)
    owners = np.repeat(np.arange(kept.row_count), np.diff(kept.offsets))
    values = kept.values.astype(np.float32)
    norms = np.sqrt(np.bincount(owners, weights=values.astype(np.float64) ** 2, minlength=kept.row_count))
    order = np.argsort(owners * np.int64(1 << 32) + kept.neuron_ids)
    scaled = (values / norms[owners]).astype(np.float32)
    return SparseRows(offsets=kept.offsets, neuron_ids=kept.neuron_ids[order], values=scaled[order])


def _queries(rows: SparseRows) -> list[tuple[np.ndarray, np.ndarray]]:
    parts = [rows.part(row, row + 1) for row in range(rows.row_count)]
    return [(np.array(part.neuron_ids), part.values.astype(np.float32)) for part in parts]


def _without(queries: list[tuple[np.ndarray, np.ndarray]], is_dense: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(ids[~is_dense[ids]], values[~is_dense[ids]]) for ids, values in queries]


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
