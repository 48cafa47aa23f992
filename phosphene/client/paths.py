"""What lies at a path that was given: nothing, a file, a folder, or something else; opens nothing."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

__all__ = ["PathKind", "kind_of"]

PathKind = Literal["nothing", "file", "folder", "other"]
"""`other` is a device, a pipe or a socket; a symbolic link is what it points to."""


def kind_of(path: Path) -> PathKind:
    """Return what lies at a path.

    Raises:
        OSError: it cannot be told: a folder on the way may not be entered, a name is too long, links run in a circle.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # A ValueError tells of a NUL, which no name has.
        return "nothing"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"
