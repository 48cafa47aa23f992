"""No name, label or address of a corpus commands the terminal of whoever looks at it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress as Bars

from index.diff import NeuronShift, describe_shifts
from index.progress import TerminalProgress
from index.terminal_text import printable

HOSTILE = "a\x1b]0;owned\x07\x9b31m\u202egpj.\n[/red]b"
SHOWN = "a?]0;owned??31m?gpj.?[/red]b"


@given(st.text())
def test_what_is_shown_is_one_line_without_commands(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert all(char.isprintable() or char.isspace() for char in shown if char not in "\u200c\u200d")


def test_other_scripts_stay() -> None:
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u732b\u3000\u72ac", "na\u00efve caf\u00e9"):
        assert printable(text) == text


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_difference_shows_names_and_addresses_without_commands(console: Console) -> None:
    shift = NeuronShift(
        neuron_id=7, densities=(0.1, 0.2), ratio=2.0, bounds=(1.5, 3.0), name=HOSTILE, exemplar_uris=(HOSTILE,)
    )
    console.print(describe_shifts([shift], count=1))
    assert said(console).count(SHOWN) == 2
    assert not {"\x1b", "\x9b", "\u202e"} & set(said(console))


def test_progress_tells_names_without_commands(console: Console) -> None:
    TerminalProgress(Bars(console=console)).say(f"quarantined 1 of 2 images: {HOSTILE}")
    assert said(console) == f"quarantined 1 of 2 images: {SHOWN}\n"
