"""Progress that keeps what was reported, and may stop the job as a kill would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from training.progress import Advance, Progress


class Killed(BaseException):
    """What a kill looks like from within the process."""


class RecordedProgress(Progress):
    """Keeps stages' reports and events; raises `Killed` the first time `stage` reports `kill_at` or more."""

    def __init__(self, *, kill_at: int | None = None, stage: str = "train") -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.advances: list[tuple[str, int, str]] = []
        self._kill_at = kill_at
        self._stage = stage

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(done: int, status: str) -> None:
            self.advances.append((name, done, status))
            if name == self._stage and self._kill_at is not None and done >= self._kill_at:
                raise Killed

        yield advance

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The fields of every event of this name."""
        return [fields for found, fields in self.events if found == name]
