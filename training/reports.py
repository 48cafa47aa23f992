"""Where a training run writes its curve, beside the bar or the log lines; knows nothing of what is in those files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phosphene.errors import SettingError
from training.places import refuse_unwritable


@dataclass(frozen=True, kw_only=True)
class RunReports:
    """Files that a run keeps up to date while it trains.

    On the command line: `--journal FILE`, `--tensorboard FOLDER`, `--metrics-file FILE`; each is optional.
    """

    journal: Path | None = None
    """JSON lines of the curve (`training/journal.py`); None keeps them in the run's folder below `work`."""
    tensorboard: Path | None = None
    """Folder of TensorBoard event files, in it a folder for each run by name; None writes none."""
    metrics_file: Path | None = None
    """Prometheus textfile, replaced whole each time; runs of one pass may share it. None writes none."""


def check_reports(all_reports: Sequence[RunReports]) -> None:
    """Refuse places that cannot be written, before any work.

    Args:
        all_reports: those of every run of one pass.

    Raises:
        SettingError: naming the option, the place and the remedy.
    """
    journals = Counter(reports.journal for reports in all_reports if reports.journal is not None)
    for path, count in journals.items():
        if count > 1:
            raise SettingError(f"--journal {str(path)!r} is given to {count} runs; give each its own, or leave it out")
    for reports in all_reports:
        if reports.journal is not None and reports.metrics_file is not None:
            _refuse_one_file(reports.journal, reports.metrics_file)
        if reports.journal is not None:
            refuse_unwritable(reports.journal, "--journal", is_file=True)
        if reports.tensorboard is not None:
            refuse_unwritable(reports.tensorboard, "--tensorboard")
        if reports.metrics_file is not None:
            refuse_unwritable(reports.metrics_file, "--metrics-file", is_file=True)


def _refuse_one_file(journal: Path, metrics_file: Path) -> None:
    if os.path.realpath(journal) == os.path.realpath(metrics_file):
        raise SettingError(
            f"--journal and --metrics-file are one file, {str(journal)!r}, where one would replace the other: name two",
            field="journal",
        )
