"""How far an approximate search looks, and how much that is enough: measured on the index itself; knows no FAISS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

__all__ = ["RECALL_WANTED", "Approximation", "Effort", "efforts", "measured", "sample_rows"]

RECALL_WANTED = 0.98
"""Share of the exact nearest that an approximate search is to find."""
_QUERY_COUNT = 128
_STEPS = (
    (4, 128),
    (8, 256),
    (16, 256),
    (16, 512),
    (32, 512),
    (32, 1024),
    (64, 1024),
    (64, 2048),
    (128, 2048),
    (256, 4096),
    (1024, 8192),
)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far a search looks."""

    probe_count: int
    """Inverted lists that are scanned; not looked at where there are none."""
    candidate_count: int
    """Rows that are ranked exactly, at least."""

    def widened(self, list_count: int) -> Effort:
        """Return one that scans eight times as many lists, or all of them."""
        return replace(self, probe_count=min(8 * max(1, self.probe_count), list_count))


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """An approximate search: how far it looks, and what that finds."""

    probe_count: int
    """See `Effort`."""
    candidate_count: int
    """See `Effort`."""
    recall: float
    """Share of the ten exact nearest that it finds, measured on rows that the effort was not chosen by."""

    @property
    def effort(self) -> Effort:
        """How far it looks."""
        return Effort(probe_count=self.probe_count, candidate_count=self.candidate_count)


def efforts(list_count: int, row_count: int) -> list[Effort]:
    """Return the efforts to try, the least first; with no lists, 0 probes."""
    cut = ((min(probes, list_count), min(candidates, row_count)) for probes, candidates in _STEPS)
    return [Effort(probe_count=probes, candidate_count=candidates) for probes, candidates in dict.fromkeys(cut)]


def sample_rows(rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " sample"]:
    """Return at most 128 of the rows, evenly spaced."""
    places = np.unique(np.linspace(0, max(0, len(rows) - 1), min(len(rows), _QUERY_COUNT)).astype(np.int64))
    sample: Int64[np.ndarray, " sample"] = rows[places]
    return sample


def measured(
    tried: Sequence[Effort],
    rows: Int64[np.ndarray, " sample"],
    recall: Callable[[Effort, Int64[np.ndarray, " some"]], float],
) -> Approximation:
    """Choose the least effort that finds enough on every other row, and measure it on the rest.

    Args:
        tried: at least one, the least first; the last is taken where none finds enough.
        rows: what is asked for.
        recall: the share that an effort finds over some rows.
    """
    chosen = next((effort for effort in tried if recall(effort, rows[::2]) >= RECALL_WANTED), tried[-1])
    rest = rows[1::2] if len(rows) > 1 else rows
    return Approximation(
        probe_count=chosen.probe_count, candidate_count=chosen.candidate_count, recall=recall(chosen, rest)
    )
