"""What runs the shards of a job: processes of this machine, or a Ray cluster. Values alone; no part of the plan."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Engine", "LocalEngine", "RayEngine"]


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """This process, or several of this machine."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Ray Core tasks, on machines that see corpus, bundle and index under the same paths."""

    address: str | None = None
    """Address of a cluster that runs; None begins one on this machine, for this job alone."""


Engine = LocalEngine | RayEngine
