"""Whether a place on disk takes what a job wants to write there, asked before any work; writes nothing that stays."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.manifest import MANIFEST_NAME, Kind, find_artefact, partial_path

FreeBytes = Callable[[Path], int]
"""Bytes that the file system of an existing folder has left."""

_SLACK_BYTES = 16 << 20


def refuse_nameless(path: Path, option: str = "--out") -> None:
    """Refuse a place where no new folder can be made, since it has no name of its own: `.`, `/`, or nothing.

    Args:
        path: what is to be made.
        option: as it stands on the command line, for the message.

    Raises:
        SettingError: there is no name.
    """
    if not path.name:
        raise SettingError(
            f"{option} is {str(path)!r}, which names no folder of its own: give the name of a new one",
            field=option.removeprefix("--"),
        )


def refuse_taken(path: Path, kind: Kind) -> None:
    """Refuse a place where an artefact neither lies nor can be made.

    Args:
        path: where it is to be.
        kind: of the artefact.

    Raises:
        ArtefactMismatch: something else lies there.
        SettingError: it is a link or a mount point, or lies in another artefact.
    """
    if not path.exists():
        find_artefact(path, kind=kind)
    elif not (path / MANIFEST_NAME).is_file():
        raise ArtefactMismatch(f"{str(path)!r} exists and is no {kind}: choose another --out, or remove it")


def refuse_within(path: Path, option: str, out: Path) -> None:
    """Refuse a place in a folder that is made whole at the end, where whatever lies there stands in its way.

    Args:
        path: what is to be written meanwhile.
        option: as it stands on the command line, for the message.
        out: where the bundle goes.

    Raises:
        SettingError: the place is that folder or lies in it, or where it grows.
    """
    place = Path(os.path.realpath(path))
    if any(place.is_relative_to(os.path.realpath(folder)) for folder in (out, partial_path(out))):
        raise SettingError(
            f"{option} would write to {str(path)!r}, in --out {str(out)!r}, which the bundle alone fills: choose a "
            "place beside it",
            field=option.removeprefix("--"),
        )


def refuse_unwritable(path: Path, option: str, *, is_file: bool = False) -> None:
    """Refuse a place that this process cannot create.

    Args:
        path: what is to be written; it need not exist, nor its parents.
        option: as it stands on the command line, for the message.
        is_file: whether a file is to be written, not a folder.

    Raises:
        SettingError: a file stands in the way, or a device or a pipe where a file is to be replaced; or the folder
            takes no files: it is read-only, full, or not ours.
    """
    if is_file and path.is_dir():
        raise SettingError(f"{option} {str(path)!r} is a folder; give the name of a file")
    if is_file and path.exists() and not path.is_file():
        raise SettingError(
            f"{option} {str(path)!r} is no regular file, which alone can be replaced whole; name another"
        )
    if not is_file and path.exists() and not path.is_dir():
        raise SettingError(f"{option} {str(path)!r} is a file; give the name of a folder")
    # A link to a file stays: what it points to is written.
    place = Path(os.path.realpath(path)) if is_file else path
    folder = nearest_folder(place.parent if is_file or not path.exists() else place)
    if not folder.is_dir():
        raise SettingError(f"{option} {str(path)!r} cannot be made: {str(folder)!r} is no folder; choose another place")
    try:
        # Permission bits do not tell of read-only file systems, nor does root obey them: only a file tells.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"?")
    except OSError as cause:
        raise SettingError(
            f"{option} {str(path)!r} cannot be written: {str(folder)!r} says {cause.strerror or cause!s}; "
            "mend access, or choose another place"
        ) from cause


def refuse_too_full(
    needs: Mapping[Path, int],
    *,
    free_bytes: FreeBytes | None = None,
    remedy: str = "use --storage float16 or a smaller --limit",
) -> None:
    """Refuse work that the disks cannot hold.

    Args:
        needs: bytes that will be written below each place.
        free_bytes: how much is left; None asks the file system.
        remedy: what makes it less work, for the message.

    Raises:
        SettingError: naming a place on the disk, what is needed there and what is left.
    """
    free_bytes = free_bytes or (lambda folder: shutil.disk_usage(folder).free)
    by_disk: dict[int, tuple[Path, int]] = {}
    for path, needed in needs.items():
        folder = nearest_folder(path)
        disk = folder.stat().st_dev
        first, already = by_disk.get(disk, (path, 0))
        by_disk[disk] = (first, already + needed)
    for path, needed in by_disk.values():
        free = free_bytes(nearest_folder(path))
        if needed + _SLACK_BYTES > free:
            raise SettingError(
                f"the disk of {str(path)!r} has {free / 1e9:.2f} GB left; this job needs about {needed / 1e9:.2f} GB "
                f"there: make room, choose another --work or --out, or {remedy}"
            )


def bytes_below(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # Another process may work there.
            total += path.stat().st_size if path.is_file() else 0
    return total


def nearest_folder(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = path.absolute()
    return path if path.exists() else nearest_folder(path.parent)
