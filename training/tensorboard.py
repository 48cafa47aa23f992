"""TensorBoard event files of a run's curve, written by tensorboardX without TensorBoard; its only user.

The library's own writers hand events to a thread, which a kill would cut short; here each record goes to its file in
order, and what a checkpoint counts on is on the disk before it. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

_VERSION = "brain.Event:2"
_SHOWN_EVERY_S = 5.0


class EventFile:
    """One event file, open for more scalars."""

    def __init__(self, folder: Path, *, step: int, clock_s: Callable[[], float]) -> None:
        """Begin a new file in `folder`; readers forget what older files there say of steps after `step`.

        Args:
            folder: of one run; made where it is missing.
            step: where the run goes on from.
            clock_s: seconds since 1970.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._clock_s = clock_s
        # Readers take files in the order of their names, and the time in a name has ten digits.
        number = 1 + sum(1 for _ in folder.glob("events.out.tfevents.*"))
        path = folder / f"events.out.tfevents.{int(clock_s()):010d}.{number:06d}"
        self._records = RecordWriter(str(path.absolute()))
        self._write(Event(file_version=_VERSION))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=step + 1))
        self.sync()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add scalars of one step; a reader sees them within a few seconds, as long as more of them come."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(summary=Summary(value=values), step=step))
        if self._clock_s() - self._synced_s >= _SHOWN_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Make everything written survive a kill and a power cut."""
        self._records.flush()
        self._synced_s = self._clock_s()

    def _write(self, event: Event) -> None:
        event.wall_time = self._clock_s()
        self._records.write(event.SerializeToString())

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._records.close()
