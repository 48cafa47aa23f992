"""The curve of a run as JSON lines; after a kill and a resume it equals an undisturbed run's, apart from the rate.

A line is written every so many steps and synced before a checkpoint is published, so that going on from a checkpoint
finds every line up to its step; later ones are cut off. Knows nothing of learners.

    {"run": "3f...", "step": 20, "loss": 0.41, "fvu": 0.41, "l0": 32.0, "dead_share": 0.0, "learning_rate": 0.001,
     "skipped_count": 0, "sample_count": 20480, "samples_per_s": 51234.5, "threshold_ema": 0.73}
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from phosphene.durable_files import replaceable_file, write_durably
from phosphene.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class JournalLine:
    """Where a run stands after a step."""

    run: str
    """Id of the run, 16 hexadecimal digits."""
    step: int
    """Steps done, skipped ones included."""
    loss: float | None
    """Mean squared error per coordinate of the scaled batch, of this step alone; None for a skipped step."""
    fvu: float | None
    """The loss over the variance of the training residuals; 1 is what predicting the mean costs."""
    l0: float | None
    """Mean number of active neurons per residual of the batch."""
    dead_share: float
    """Share of neurons that counted as dead before the step."""
    learning_rate: float
    """Of this step."""
    skipped_count: int
    """Steps skipped so far, because they would have led to NaN or infinity."""
    sample_count: int
    """Residuals seen so far."""
    samples_per_s: float
    """Residuals per second since the line before."""
    threshold_ema: float | None = None
    """Moving average over the steps of the smallest activation selected from a batch, in units of the scaled residual;
    None where the rule selects nothing over a batch. For watching: the shipped threshold is calibrated."""


class Journal:
    """The journal of one run, open for more lines."""

    def __init__(self, path: Path, *, run: str, step: int) -> None:
        """Go on after `step`: keep the lines up to it, drop the others.

        Args:
            path: the file, or a link to it; made where it is missing.
            run: id of the run.
            step: where the run goes on from.

        Raises:
            SettingError: the file is no journal, or another run's; or a folder, a device or a pipe is there.
        """
        path = replaceable_file(path, what="journal")
        kept = [line for line in read_journal(path, run=run) if line["step"] <= step]
        write_durably(path, b"".join(map(_text, kept)))
        self._file = path.open("ab")

    def write(self, line: JournalLine) -> None:
        """Add a line; a reader sees it at once."""
        self._file.write(_text(asdict(line)))
        self._file.flush()

    def sync(self) -> None:
        """Make all lines survive a power cut."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read_journal(path: Path, *, run: str) -> list[dict[str, Any]]:
    """The whole lines of a run's journal; none where the file is missing.

    Raises:
        SettingError: the file is no journal, or another run's.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    raw_lines = data[: data.rfind(b"\n") + 1].splitlines()  # A kill may have cut the last one.
    lines = [_parsed(raw) for raw in raw_lines]
    if any(line.get("run") != run or not isinstance(line.get("step"), int) for line in lines):
        raise SettingError(
            f"--journal {str(path)!r} holds the curve of another run, or something else; choose another file, or "
            "remove it",
            field="journal",
        )
    return lines


def _text(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
