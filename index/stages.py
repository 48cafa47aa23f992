"""How long each stage of a job took: a progress that measures what it passes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from index.metrics import MetricsFile, StageFigures
from index.progress import Progress

__all__ = ["MeasuredProgress"]

_WRITE_INTERVAL_S = 5.0


class MeasuredProgress:
    """Passes everything on, measures stages, and keeps a metrics file where there is one."""

    def __init__(
        self, inner: Progress, metrics: MetricsFile | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Pass on to `inner`; `clock` gives seconds that only grow."""
        self._inner, self._metrics, self._clock = inner, metrics, clock
        self._stages: dict[str, StageFigures] = {}
        self._current = ""
        self._began_s = self._written_s = 0.0

    @property
    def stages(self) -> Mapping[str, StageFigures]:
        """Every stage that has begun, in order."""
        self._measure(0)
        return dict(self._stages)

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        """Begin a stage; the one before ends."""
        self._measure(0)
        self._current, self._began_s = title, self._clock()
        self._stages[title] = StageFigures(done=done, total=total, duration_s=0.0)
        self._write({})
        self._inner.begin(title, total, done, unit)

    def advance(self, count: int) -> None:
        """Count steps."""
        self._measure(count)
        if self._clock() - self._written_s >= _WRITE_INTERVAL_S:
            self._write({})
        self._inner.advance(count)

    def say(self, sentence: str) -> None:
        """Pass it on."""
        self._inner.say(sentence)

    def finish(self, outcome: Mapping[str, int | float]) -> None:
        """Write the figures of the finished index to the metrics file."""
        self._measure(0)
        self._write(outcome)

    def _measure(self, count: int) -> None:
        if self._current:
            stage = self._stages[self._current]
            took_s = self._clock() - self._began_s
            self._stages[self._current] = replace(stage, done=stage.done + count, duration_s=took_s)

    def _write(self, outcome: Mapping[str, int | float]) -> None:
        self._written_s = self._clock()
        if self._metrics is not None:
            self._metrics.write(self._stages, outcome)
