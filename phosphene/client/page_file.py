"""The file that a page is written to: checked before anything is asked, then written whole; knows nothing of pages.

A device or a pipe is written as it is: a file renamed over it would take it away. So is the file that a standard stream
goes to, through the stream: what is printed there would go to a file that has no name any more.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from phosphene.client.paths import kind_of
from phosphene.client.standard_streams import streams_at, write_utf8
from phosphene.errors import SettingError

__all__ = ["check_page_path", "write_page"]


def check_page_path(path: Path) -> None:
    """Refuse what no page can be written to, as far as that shows without writing.

    Raises:
        SettingError: it is a folder, its folder does not exist, or the system refuses the path.
    """
    try:
        kind = kind_of(path)
        if streams_at(path):
            return
        if kind == "folder":
            raise SettingError(f"{str(path)!r} is a folder; name a file")
        if kind == "other":
            return
        target = _target(path)
        if kind_of(target.parent) != "folder":
            raise SettingError(f"there is no folder {str(target.parent)!r} to write {target.name!r} to")
        kind_of(_draft(target))
    except OSError as error:
        raise _refused(path, error) from error


def write_page(page: str, path: Path) -> None:
    """Write a page: a file is replaced once all of it is written, a symbolic link stays one.

    Raises:
        SettingError: the system does not let it be written.
        OSError: it goes to standard output, which cannot be written.
    """
    streams = streams_at(path)
    if "output" in streams:
        write_utf8(page)
        return
    try:
        if streams:
            write_utf8(page, "error")
        elif kind_of(path) == "other":
            path.write_text(page, encoding="utf-8")
        else:
            _replace(_target(path), page)
    except OSError as error:
        raise _refused(path, error) from error


def _replace(target: Path, page: str) -> None:
    draft = _draft(target)
    file = draft.open("w", encoding="utf-8")
    try:
        with file:
            # What only some may read stays so; where there is nothing yet, there is nothing to keep.
            with suppress(OSError):
                shutil.copymode(target, draft)
            file.write(page)
        draft.replace(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _draft(target: Path) -> Path:
    # With the process's number: two that write one page at a time must not write into each other's.
    return target.with_name(f"{target.name}.{os.getpid()}.partial")


def _refused(path: Path, error: OSError) -> SettingError:
    return SettingError(f"no page can be written to {str(path)!r}: {error.strerror or error}; name another file")
