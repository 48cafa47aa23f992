"""One run's curve, written everywhere it was asked for: journal, TensorBoard, Prometheus. Knows nothing of training."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from training.journal import Journal, JournalLine
from training.metrics import MetricsFile
from training.progress import Progress

if TYPE_CHECKING:
    from training.tensorboard import EventFile


class Curve:
    """The open files of one run's curve."""

    def __init__(
        self,
        name: str,
        *,
        run: str,
        step: int,
        journal: Path,
        tensorboard: Path | None,
        metrics_file: MetricsFile | None,
        progress: Progress,
    ) -> None:
        """Go on after `step`.

        Args:
            name: of the run, for people.
            run: id of the run.
            step: where the run goes on from.
            journal: the file of JSON lines.
            tensorboard: folder for event files; None writes none.
            metrics_file: shared by the runs of a pass; None writes none.
            progress: where to say that the metrics file cannot be written.

        Raises:
            SettingError: `journal` holds something else.
        """
        self._name = name
        self._progress = progress
        self._metrics_file = metrics_file
        with ExitStack() as stack:
            self._journal = stack.enter_context(Journal(journal, run=run, step=step))
            self._event_file: EventFile | None = None
            if tensorboard is not None:
                # Only who asks for event files pays for their library.
                from training.tensorboard import EventFile

                self._event_file = stack.enter_context(EventFile(tensorboard / name, step=step, clock_s=time.time))
            self._files = stack.pop_all()

    def write(self, line: JournalLine) -> None:
        """Write a line everywhere.

        Raises:
            OSError: the disk is full or gone. For the metrics file that is no reason to stop: it is told once.
        """
        self._journal.write(line)
        if self._event_file is not None:
            self._event_file.write(line.step, _scalars(line))
        if self._metrics_file is not None:
            try:
                self._metrics_file.write(self._name, line)
            except OSError as error:
                self._metrics_file = None
                self._progress.event("metrics file given up", reason=str(error))

    def sync(self) -> None:
        """Make journal and event file survive a power cut."""
        self._journal.sync()
        if self._event_file is not None:
            self._event_file.sync()

    def __enter__(self) -> Curve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()


def _scalars(line: JournalLine) -> dict[str, float]:
    figures = {
        "loss": line.loss,
        "fvu": line.fvu,
        "l0": line.l0,
        "dead_share": line.dead_share,
        "learning_rate": line.learning_rate,
        "skipped_count": line.skipped_count,
        "samples_per_s": line.samples_per_s,
        "threshold_ema": line.threshold_ema,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}
