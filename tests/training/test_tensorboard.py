import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from training.tensorboard import EventFile


class Clock:
    """Seconds since 1970 that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1.5e9

    def __call__(self) -> float:
        return self.now_s


def events(path: Path) -> list[Event]:
    """The whole records of a file as it lies on disk."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def seen(folder: Path) -> dict[int, list[float]]:
    """What TensorBoard shows: files in the order of their names; a session purges what older ones say from its step."""
    shown: dict[int, list[float]] = {}
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                shown = {step: values for step, values in shown.items() if step < event.step}
            for value in event.summary.value:
                shown.setdefault(event.step, []).append(value.simple_value)
    return shown


def test_scalars_come_back_with_step_and_time(tmp_path: Path) -> None:
    with EventFile(tmp_path / "run", step=300, clock_s=Clock()) as file:
        file.write(310, {"loss": 0.25, "l0": 32.0})
    (path,) = (tmp_path / "run").iterdir()
    version, session, scalars = events(path)
    assert path.name == "events.out.tfevents.1500000000.000001"
    assert version.file_version == "brain.Event:2"
    # A session that starts at step 301: readers forget what older files say from there on.
    assert (session.session_log.status, session.step) == (SessionLog.START, 301)
    assert (scalars.step, scalars.wall_time) == (310, 1.5e9)
    assert [(value.tag, value.simple_value) for value in scalars.summary.value] == [("loss", 0.25), ("l0", 32.0)]


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    clock = Clock()
    with EventFile(tmp_path, step=0, clock_s=clock) as killed:
        for step in (10, 20, 30, 40):  # The last two after the checkpoint: they are done again.
            killed.write(step, {"loss": 1.0})
    with EventFile(tmp_path, step=20, clock_s=clock) as resumed:
        for step in (30, 40, 50):
            resumed.write(step, {"loss": 0.5})
    assert seen(tmp_path) == {10: [1.0], 20: [1.0], 30: [0.5], 40: [0.5], 50: [0.5]}


@pytest.mark.parametrize(("passed_s", "shown"), [(1.0, []), (5.0, [10])])
def test_what_is_written_is_on_the_disk_after_seconds_or_a_sync(
    tmp_path: Path, passed_s: float, shown: list[int]
) -> None:
    clock = Clock()
    with EventFile(tmp_path, step=0, clock_s=clock) as file:
        clock.now_s += passed_s
        file.write(10, {"loss": 1.0})
        assert list(seen(tmp_path)) == shown
        file.sync()
        assert list(seen(tmp_path)) == [10]
