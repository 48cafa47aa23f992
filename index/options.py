"""How texts on the command line of the index are read: numbers with their limits, and the place of what is made.

Each reader is a `type` of argparse, and says what is wrong with a text; what holds for all texts is checked apart.
Knows nothing of commands or jobs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from phosphene.errors import SettingError

__all__ = ["new_folder", "refuse_half_characters", "row_count", "seconds"]

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


def refuse_half_characters(texts: Sequence[str]) -> None:
    """Refuse what is not UTF-8, which no file of an index may hold, and under which tables cannot be opened.

    Raises:
        SettingError: a text holds a byte that is no character; all of them in one error.
    """
    wrong = [text for text in texts if any("\ud800" <= char <= "\udfff" for char in text)]
    if wrong:
        raise SettingError(f"{', '.join(map(ascii, wrong))} is not UTF-8; rename the file or folder, or write it so")
