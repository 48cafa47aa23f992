"""Where the command's words go: answers to standard output, all else to standard error; either may be shut."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console

from phosphene.client.words import plain

__all__ = [
    "StreamName",
    "answer_console",
    "progress_console",
    "run_with_output",
    "say",
    "streams_at",
    "tell",
    "write",
    "write_utf8",
]

StreamName = Literal["output", "error"]
# What stands there, and what a caller of `main` may put there.
Stream = TextIO | io.TextIOBase

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
        then nothing is run; 130 where the user interrupts.
    """
    if sys.stdout is None:
        say("standard output is closed, so that no answer can be written; open it, or send it to a file (> FILE)")
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return run()
    except KeyboardInterrupt:
        # What waits to be written may be what took too long, such as for a pager that is not read on.
        _give_up(sys.stdout)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        _give_up(sys.stdout)
        return 0
    except OSError as error:
        _give_up(sys.stdout)
        say(f"standard output cannot be written: {error.strerror or error}; make room, or send it elsewhere")
        return 1


def write(answer: str) -> None:
    """Write to standard output at once.

    Raises:
        OSError: it takes no more.
    """
    sys.stdout.write(answer)
    sys.stdout.flush()


def write_utf8(text: str, stream: StreamName = "output") -> None:
    """Write at once what programs read, JSON or a page: as UTF-8, whatever the terminal's encoding.

    A lone surrogate, which stands for a byte of a file name that is not UTF-8, becomes its escape in JSON.

    Raises:
        OSError: the stream takes no more.
    """
    to = sys.stdout if stream == "output" else sys.stderr
    to.flush()
    buffer = getattr(to, "buffer", None)
    if buffer is None:
        to.write(text)
    else:
        buffer.write(text.encode("utf-8", "backslashreplace"))
    to.flush()


def say(text: str) -> None:
    """Write one line to standard error, where there is one."""
    tell(f"phosphene: {plain(text)}\n")


def tell(lines: str) -> None:
    """Write lines to standard error as they are, where there is one and it can be written."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(lines)
        sys.stderr.flush()
    except OSError:
        _give_up(sys.stderr)


def streams_at(path: Path) -> frozenset[StreamName]:
    """Return the standard streams that go to what lies at a path, be it called /dev/stdout or by its own name."""
    streams: dict[StreamName, Stream | None] = {"output": sys.stdout, "error": sys.stderr}
    return frozenset(name for name, stream in streams.items() if stream is not None and _goes_to(stream, path))


def answer_console() -> Console:
    """Return a console on standard output."""
    return _Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def progress_console() -> Console | None:
    """Return a console on standard error for progress; None where nobody would see it, or answers scroll by there."""
    if sys.stderr is None or not sys.stderr.isatty() or sys.stdout.isatty():
        return None
    return Console(file=sys.stderr)


def _goes_to(stream: Stream, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (OSError, ValueError):
        # There is no such path, or a stream that is no file's.
        return False


def _give_up(stream: Stream) -> None:
    """Let nothing be left to flush at exit, which would fail again, and end the process with a status of its own."""
    # What a caller of `main` put in place of the stream may have no file.
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
