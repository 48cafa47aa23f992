"""Files and arrays written whole or with an error, and folders that one process holds; knows no artefact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from phosphene.errors import SettingError

__all__ = ["hold_folder", "replaceable_file", "save_array", "sync_path", "write_durably"]


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, also after a power cut."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_path(path.parent)


def replaceable_file(path: Path, *, what: str) -> Path:
    """Return the file that is to be replaced whole, again and again: the path, or what a link there points to.

    Its folder is made where it is missing.

    Args:
        path: as somebody named it.
        what: what it will hold, for the message.

    Raises:
        SettingError: a folder, a device or a pipe is there, whose place a renamed file would take.
    """
    if path.exists() and not path.is_file():
        raise SettingError(
            f"the {what} {str(path)!r} is no regular file, which alone can be replaced whole; name another"
        )
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file: the bytes that `np.save` writes of an array in C order.

    `np.save` hands a file to C's library and does not hear of what fails when that is closed: on a full disk it leaves
    the last part of an array out, and all seems well.

    Raises:
        OSError: the file could not be written whole; names it.
    """
    ordered = np.asarray(array, order="C")
    try:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ordered))
            file.write(ordered.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder in which work grows, so that no other process works there; let go of at the end, also by a kill.

    Raises:
        SettingError: another process holds it, or has just renamed or removed it.
    """
    import fcntl  # Windows has none; there artefacts can be read, not made.

    busy = SettingError(f"another process works in {folder.name!r}; wait for it, or choose another --out")
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as error:
        raise busy from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        # Who held it before may have renamed or removed it between the opening and the lock.
        if not folder.exists() or not os.path.samestat(folder.stat(), os.fstat(descriptor)):
            raise busy
        yield
    finally:
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """Make durable what a file holds, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
