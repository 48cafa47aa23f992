"""Where FAISS searches: in memory, or on a GPU where its build has one; knows nothing of what is searched.

FAISS on a GPU takes flat vectors and 8-bit lists, of which it does not take every number of parts. Fast-scan lists
exist on the CPU alone. What lies on a GPU takes one search at a time.
"""

from __future__ import annotations

from typing import Any

import faiss

from phosphene.errors import SettingError

__all__ = ["GPU_PROPOSAL_LIMIT", "on_device"]

GPU_PROPOSAL_LIMIT = 2048
"""Most rows that FAISS finds by one search on a GPU, and most lists that it looks through."""


def on_device(index: Any, device: str) -> Any:
    """Return the index itself for `cpu`, else a copy on the GPU `cuda` or `cuda:N`.

    Raises:
        SettingError: this FAISS has no such GPU, or the index is of a kind that none holds.
    """
    if device == "cpu":
        return index
    kind, _, number = device.partition(":")
    gpu = int(number) if number.isdigit() else 0
    if kind != "cuda" or (number and not number.isdigit()):
        raise SettingError(f"FAISS searches on cpu or cuda:N, not on {device!r}")
    available = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if gpu >= available:
        raise SettingError(
            f"FAISS cannot search on {device}: it sees {available} GPUs; install requirements/gpu.txt, or search on cpu"
        )
    if isinstance(index, faiss.IndexIVFPQFastScan):
        raise SettingError(
            "fast-scan lists cannot be searched on a GPU; build the index with --quantiser eight-bit, or search on cpu"
        )
    resources = faiss.StandardGpuResources()
    options = faiss.GpuClonerOptions()
    options.useFloat16 = True
    try:
        moved: Any = faiss.index_cpu_to_gpu(resources, gpu, index, options)
    except RuntimeError as cause:
        raise SettingError(
            f"FAISS cannot hold {_described(index)} on {device} ({_reason(cause)}); search on cpu "
            "(PHOSPHENE_INDEX_DEVICE=cpu)"
        ) from cause
    # The copy does not keep what it runs on alive.
    moved.referenced_objects = [resources]
    return moved


def _described(index: Any) -> str:
    found = f"{index.ntotal} vectors of {index.d} numbers"
    return f"{found} in lists of {index.pq.M} parts a vector" if isinstance(index, faiss.IndexIVFPQ) else found


def _reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its sources."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0].rpartition(": Error: ")[2] or lines[0]
