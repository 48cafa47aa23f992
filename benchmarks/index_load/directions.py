"""Nearest neurons among random directions, ours and FAISS's flat index, on one thread; prints milliseconds.

Each runs in a process of its own: `python -m benchmarks.index_load.directions {ours,faiss} NEURONS WIDTH QUERIES`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from index.retrieval.nearest_directions import NearestDirections

__all__ = ["make_search"]

_COUNT = 10


def make_search(who: str, directions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a vector to its nearest directions."""
    if who == "ours":
        ours = NearestDirections(directions)
        return lambda vector: ours.nearest(vector, _COUNT)[0]
    theirs: Any = faiss.IndexFlatIP(directions.shape[1])
    theirs.add(directions)
    return lambda vector: theirs.search(vector[None], _COUNT)[1][0]


def main() -> None:
    """Ask every query once and say how long one took."""
    who, neuron_count, width, query_count = sys.argv[1], *(int(word) for word in sys.argv[2:5])
    faiss.omp_set_num_threads(1)
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(neuron_count, width)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    queries = directions[generator.integers(neuron_count, size=query_count)]
    queries = queries + generator.normal(size=queries.shape).astype(np.float32) * np.float32(1 / np.sqrt(width))
    search = make_search(who, directions)
    search(queries[0])
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = [search(query) for query in queries]
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    answer = {"wall_s": wall_s / query_count, "cpu_s": cpu_s / query_count, "rows": np.array(found).tolist()}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
