"""FAISS with one GPU, on a machine that has none: what it refuses, and what two threads must not do to it."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
import pytest


class GpuCopy:
    """An index as FAISS holds it on a GPU: one search at a time, of at most 2048 rows."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._entered = threading.Lock()
        self.asked: list[int] = []

    def search(self, vectors: np.ndarray, count: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        if count > 2048:
            raise RuntimeError("Error in void faiss::gpu::validateKSelect(int): Error: 'k <= 2048' failed")
        assert self._entered.acquire(blocking=False), "two threads search at a time"
        self.asked.append(count)
        try:
            found: tuple[np.ndarray, np.ndarray] = self._index.search(vectors, count, **options)
            return found
        finally:
            self._entered.release()


def give_gpu(monkeypatch: pytest.MonkeyPatch) -> list[GpuCopy]:
    """Let FAISS have a GPU; what is put on it stands in the list."""
    copies: list[GpuCopy] = []

    def copy(resources: object, gpu: int, index: Any, options: object) -> GpuCopy:
        if isinstance(index, faiss.IndexIVFPQ) and index.pq.M == 128:
            raise RuntimeError(
                "Error in void faiss::gpu::GpuIndexIVFPQ::verifyPQSettings_() const at GpuIndexIVFPQ.cu:460: Error: "
                "'IVFPQ::isSupportedPQCodeLength(subQuantizers_)' failed: Number of bytes per encoded vector 128 is "
                "not supported"
            )
        copies.append(GpuCopy(index))
        return copies[-1]

    for name, stand_in in {
        "get_num_gpus": lambda: 1,
        "StandardGpuResources": object,
        "GpuClonerOptions": type("Options", (), {}),
        "index_cpu_to_gpu": copy,
    }.items():
        monkeypatch.setattr(faiss, name, stand_in, raising=False)
    return copies
