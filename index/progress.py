"""Tells whoever waits how far a job is: a bar with rate and ETA on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from index.terminal_text import printable

__all__ = ["LineProgress", "Progress", "TerminalProgress", "open_progress"]

_LINE_INTERVAL_S = 5.0
_WIDTH_BESIDE_BAR = 58  # what name, counts, rate and time take


@runtime_checkable
class Progress(Protocol):
    """What a job tells."""

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        """Begin a stage of `total` steps, of which `done` were done before."""
        ...

    def advance(self, count: int) -> None:
        """Count steps of the current stage as done."""
        ...

    def say(self, sentence: str) -> None:
        """Say something once."""
        ...


class LineProgress:
    """One JSON object a line: at most one every five seconds within a stage, and one at its end."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        """Hand each line to `write`; `clock` gives seconds that only grow."""
        self._hand_over = write
        self._clock = clock
        self._title, self._unit = "", ""
        self._total, self._done, self._done_before = 0, 0, 0
        self._began_s, self._last_s = 0.0, 0.0

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        """Begin a stage."""
        self._title, self._unit = title, unit
        self._total, self._done, self._done_before = total, done, done
        self._began_s = self._last_s = self._clock()
        self._write({"event": "begin", "stage": title, "total": total, "done": done, "unit": unit})

    def advance(self, count: int) -> None:
        """Count steps; write a line where one is due."""
        self._done += count
        now_s = self._clock()
        if now_s - self._last_s < _LINE_INTERVAL_S and self._done < self._total:
            return
        self._last_s = now_s
        rate = (self._done - self._done_before) / max(now_s - self._began_s, 1e-9)
        self._write(
            {
                "event": "progress",
                "stage": self._title,
                "done": self._done,
                "total": self._total,
                "unit": self._unit,
                "rate_per_s": round(rate, 2),
                "eta_s": round((self._total - self._done) / rate, 1) if rate > 0 else None,
            }
        )

    def say(self, sentence: str) -> None:
        """Write a line with the sentence."""
        self._write({"event": "note", "text": sentence})

    def _write(self, record: dict[str, object]) -> None:
        self._hand_over(json.dumps(record, ensure_ascii=False) + "\n")


class TerminalProgress:
    """A bar for each stage."""

    def __init__(self, bars: RichProgress) -> None:
        """Draw on `bars`, which the caller has started."""
        self._bars = bars
        self._task = None if not bars.task_ids else bars.task_ids[-1]

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        """Begin a stage: a new bar."""
        self._task = self._bars.add_task(title, total=total, completed=done, unit=unit, done_before=done)

    def advance(self, count: int) -> None:
        """Move the current bar on."""
        if self._task is not None:
            self._bars.advance(self._task, count)

    def say(self, sentence: str) -> None:
        """Print the sentence above the bars, without markup or commands: it may hold names of files."""
        self._bars.console.print(Text(printable(sentence)))


@contextmanager
def open_progress(console: Console) -> Iterator[Progress]:
    """Tell progress on a console as fits it: bars on a terminal, JSON lines on anything else."""
    if not console.is_terminal:
        yield LineProgress(console.file.write)
        return
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=max(4, min(40, console.width - _WIDTH_BESIDE_BAR))),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    with RichProgress(*columns, console=console) as bars:
        yield TerminalProgress(bars)


class _Rate(ProgressColumn):
    """Steps of this run per second."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.finished_time if task.finished else task.elapsed
        done = task.completed - float(task.fields["done_before"])
        return Text(f"{done / elapsed_s:.1f} {task.fields['unit']}/s" if elapsed_s else "", style="cyan")
