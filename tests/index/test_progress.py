"""What a job tells a person: names of files as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from index.progress import TerminalProgress


@pytest.mark.parametrize("name", ["a[/b].jpg", "[red]c.jpg", "d :smile: e.jpg"])
def test_names_are_told_as_they_are(name: str) -> None:
    stream = io.StringIO()
    bars = Bars(console=Console(file=stream, width=120, force_terminal=True, color_system=None))
    TerminalProgress(bars).say(f"quarantined 1 of 2 images: {name}: no image")
    assert f"quarantined 1 of 2 images: {name}: no image" in stream.getvalue()
