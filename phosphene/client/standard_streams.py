"""Where the command's words go: answers to standard output, all else to standard error; either may be shut."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console

from phosphene.client.words import plain

__all__ = ["answer_console", "progress_console", "run_with_output", "say", "write"]

# Where output goes to a file or a pipe there is no width to fold tables to.
_PIPE_WIDTH = 140


class _Console(Console):
    """Leaves it to `run_with_output` what follows when the reader of a pipe has gone."""

    def on_broken_pipe(self) -> None:
        """Raise the `BrokenPipeError` that is being handled; rich itself would end the process."""
        raise


def run_with_output(run: Callable[[], int]) -> int:
    """Run what writes answers, and say what became of them where they cannot be written.

    Args:
        run: returns its exit status; every `OSError` that it lets through is one of standard output.

    Returns:
        What `run` does; 0 where the reader of a pipe has gone; 1 where standard output cannot be written, or is closed:
        then nothing is run.
    """
    if sys.stdout is None:
        say("standard output is closed, so that no answer can be written; open it, or send it to a file (> FILE)")
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return run()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        _give_output_up()
        return 0
    except OSError as error:
        _give_output_up()
        say(f"standard output cannot be written: {error.strerror or error}; make room, or send it elsewhere")
        return 1


def write(answer: str) -> None:
    """Write to standard output at once.

    Raises:
        OSError: it takes no more.
    """
    sys.stdout.write(answer)
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line to standard error, where there is one."""
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"phosphene: {plain(text)}\n")


def answer_console() -> Console:
    """Return a console on standard output."""
    return _Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def progress_console() -> Console | None:
    """Return a console on standard error for progress; None where nobody would see it, or answers scroll by there."""
    if sys.stderr is None or not sys.stderr.isatty() or sys.stdout.isatty():
        return None
    return Console(file=sys.stderr)


def _give_output_up() -> None:
    """Let nothing be left to flush at exit, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
