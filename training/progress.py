"""How long work is shown: a bar with rate and ETA on a terminal, JSON lines elsewhere. Knows nothing of the work.

Both are context managers that own what they draw; jobs see only the `Progress` interface.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.table import Column
from rich.text import Text

Advance = Callable[[int, str], None]
"""Called with how many units are done now and a short status text ("" for none)."""

_LINE_EVERY_S = 5.0
_WIDTH_BESIDE_BAR = 90  # what name, counts, rate, time and a status take


class Progress(ABC):
    """What a job reports to."""

    @abstractmethod
    def stage(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Open a stage of `total` units; inside, call the `Advance`."""

    @abstractmethod
    def event(self, name: str, **fields: Any) -> None:
        """Report something that happened once."""


class TerminalProgress(Progress):
    """Bars for people."""

    def __init__(self, console: Console) -> None:
        """Draw on this console."""
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """See `Progress.stage`."""
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=max(4, min(40, self._console.width - _WIDTH_BESIDE_BAR))),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Rate(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            # It alone gives way where the line is too long.
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        with RichBar(*columns, console=self._console, expand=True) as bar:
            task = bar.add_task(name, total=total, status="")

            def advance(done: int, status: str) -> None:
                bar.update(task, completed=done, status=status)

            yield advance

    def event(self, name: str, **fields: Any) -> None:
        """See `Progress.event`."""
        details = "  ".join(f"{key}={_short(value)}" for key, value in fields.items())
        self._console.print(Text.assemble((name, "bold"), "  ", details), soft_wrap=True)


class LineProgress(Progress):
    """JSON lines for logs: at most one every five seconds in a stage, and one at its end."""

    def __init__(self, write_line: Callable[[str], object], clock_s: Callable[[], float] = time.monotonic) -> None:
        """Hand lines to `write_line`; `clock_s` is monotonic seconds."""
        self._write_line = write_line
        self._clock_s = clock_s

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """See `Progress.stage`."""
        began_s = self._clock_s()
        first: int | None = None
        last_s = began_s

        def advance(done: int, status: str) -> None:
            nonlocal first, last_s
            now_s = self._clock_s()
            if first is None:
                first = done
            if done < total and now_s - last_s < _LINE_EVERY_S:
                return
            last_s = now_s
            rate = (done - first) / max(now_s - began_s, 1e-9)
            eta_s = round((total - done) / rate, 1) if rate > 0 else None
            fields: dict[str, Any] = {"done": done, "total": total, "unit": unit, "rate_per_s": round(rate, 2)}
            self.event(name, **fields, eta_s=eta_s, **({"status": status} if status else {}))

        yield advance

    def event(self, name: str, **fields: Any) -> None:
        """See `Progress.event`."""
        self._write_line(json.dumps({"event": name} | fields, ensure_ascii=False))


class SilentProgress(Progress):
    """Reports nowhere."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """See `Progress.stage`."""
        yield lambda done, status: None

    def event(self, name: str, **fields: Any) -> None:
        """See `Progress.event`."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "-/s")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
