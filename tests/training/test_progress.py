import io
import json
import re

import pytest
from rich.console import Console

from training.progress import LineProgress, TerminalProgress


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_lines_are_json_with_rate_and_eta_and_few() -> None:
    lines: list[str] = []
    clock = Clock()
    with LineProgress(lines.append, clock).stage("train", 100, "steps") as advance:
        for done in range(0, 101, 5):
            advance(done, "loss 0.5")
            clock.now_s += 1
    found = [json.loads(line) for line in lines]
    assert [line["done"] for line in found] == [25, 50, 75, 100]
    assert found[1] == {
        "event": "train",
        "done": 50,
        "total": 100,
        "unit": "steps",
        "rate_per_s": 5.0,
        "eta_s": 10.0,
        "status": "loss 0.5",
    }


def test_the_last_line_always_comes() -> None:
    lines: list[str] = []
    with LineProgress(lines.append, Clock()).stage("harvest", 3, "images") as advance:
        advance(3, "")
    assert json.loads(lines[-1])["done"] == 3


def test_a_terminal_shows_a_bar_with_rate() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = TerminalProgress(console)
    with progress.stage("train", 10, "steps") as advance:
        advance(10, "loss 0.5")
    progress.event("published", fvu=0.123456)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "/s" in shown
    assert "loss 0.5" in shown
    assert "fvu=0.1235" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("total", [2000, 110_000])
def test_a_bar_takes_one_line_of_any_terminal(width: int, total: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    status = "16 runs, mean loss 0.4123, dead <= 11.2%, skipped 12"
    with TerminalProgress(console).stage("train", total, "steps") as advance:
        advance(total // 2, status)
    assert isinstance(console.file, io.StringIO)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n").split("\n")
    drawn = [line for line in lines if line.strip()]
    assert all(line.startswith("train") and len(line) <= width for line in drawn)
    if width >= 80:
        assert "16 runs, mean loss 0.4123" in drawn[-1]
