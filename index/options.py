"""How texts on the command line of the index are read: numbers with their limits, and the place of what is made.

Each reader is a `type` of argparse, and says what is wrong with a text. Knows nothing of commands or jobs.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

__all__ = ["new_folder", "row_count", "seconds"]

_DIGITS = re.compile("[0-9]{1,10}")
_DAY_S = 24 * 60 * 60
_ROW_LIMIT = 1_000_000


def row_count(text: str) -> int:
    """Rows of a table to print, at most."""
    if not _DIGITS.fullmatch(text) or int(text) > _ROW_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of rows from 0 to {_ROW_LIMIT:,}")
    return int(text)


def seconds(text: str) -> int:
    """How long one call may take."""
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= _DAY_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 to {_DAY_S} (a day)")
    return int(text)


def new_folder(text: str) -> Path:
    """Where an artefact is to be: a folder with a name of its own, since it grows beside its place."""
    path = Path(text)
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} names no folder of its own; give the name of a new one")
    return path
