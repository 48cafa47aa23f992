"""What a job tells a person: names of files as they are."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from index.progress import TerminalProgress, open_progress


@pytest.mark.parametrize("name", ["a[/b].jpg", "[red]c.jpg", "d :smile: e.jpg"])
def test_names_are_told_as_they_are(name: str) -> None:
    stream = io.StringIO()
    bars = Bars(console=Console(file=stream, width=120, force_terminal=True, color_system=None))
    TerminalProgress(bars).say(f"quarantined 1 of 2 images: {name}: no image")
    assert f"quarantined 1 of 2 images: {name}: no image" in stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_takes_one_line_of_the_terminal(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    with open_progress(console) as progress:
        progress.begin("encode", 4_000_000, 1_000_000, "images")
        progress.advance(1_234_567)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in re.split("[\r\n]", stream.getvalue())]
    drawn = [line for line in lines if line]
    assert drawn[-1].startswith("encode")
    assert all("images/s" in line and "/4000000" in line and len(line) <= width for line in drawn)
