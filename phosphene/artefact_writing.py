"""Artefacts are written whole or not at all: they grow beside their name and are renamed to it with their manifest.

The rules are docs/design.md section 4. Reading them is `phosphene.manifest`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phosphene.durable_files import hold_folder, sync_path, write_durably
from phosphene.errors import ArtefactMismatch, ArtefactRefused, SettingError
from phosphene.manifest import MANIFEST_NAME, FileEntry, Kind, Manifest, file_sha256, partial_path, refuse_place

__all__ = ["JOB_PLAN_NAME", "emptied_partial", "publish", "seal"]

JOB_PLAN_NAME = "plan.json"
"""In a folder that grows: whose work it is, where a job goes on over several runs. Others leave that folder alone."""


def publish(
    target: Path, *, kind: Kind, inputs: dict[str, str], config: dict[str, Any], write: Callable[[Path], None]
) -> Manifest:
    """Write a whole artefact in one go.

    Args:
        target: the artefact's folder; must not exist yet.
        kind: what it is.
        inputs: ids of what it is made from.
        config: everything that decided its contents.
        write: fills the empty folder that it is given.

    Returns:
        The manifest of what now lies at `target`.

    Raises:
        ArtefactMismatch: `target` exists.
        SettingError: another process writes it, or an unfinished job; `target` is a link or a mount point, or lies in
            another artefact.
    """
    refuse_place(target)
    with emptied_partial(target) as partial:
        write(partial)
        return seal(partial, target, kind=kind, inputs=inputs, config=config)


@contextmanager
def emptied_partial(target: Path) -> Iterator[Path]:
    """Hold the folder where an artefact grows in one go, emptied of what a run that was cut off has left.

    Raises:
        SettingError: another process writes there, or a job that goes on over several runs has its work there.
    """
    partial = partial_path(target)
    partial.mkdir(parents=True, exist_ok=True)
    with hold_folder(partial):
        if (partial / JOB_PLAN_NAME).exists():
            raise SettingError(
                f"{partial.name!r} holds what an unfinished job has done: run that job to its end, remove the folder, "
                f"or choose another name than {target.name!r}"
            )
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        yield partial


def seal(partial: Path, target: Path, *, kind: Kind, inputs: dict[str, str], config: dict[str, Any]) -> Manifest:
    """Digest the files of a filled folder, write the manifest last, and rename the folder to its name.

    For jobs that fill their own `.partial` over several runs. Arguments, return value and errors as `publish`.
    """
    from phosphene import __version__

    if target.exists():
        raise ArtefactMismatch(f"{target.name!r} already exists; remove it or choose another name")
    files: dict[str, FileEntry] = {}
    for path in sorted(partial.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ArtefactRefused(f"{path.name!r} in {partial.name!r} is not a plain file; artefacts hold nothing else")
        if path.is_file():
            name = path.relative_to(partial).as_posix()
            files[name] = FileEntry(file_sha256(path), path.stat().st_size)
            sync_path(path)
    manifest = Manifest(
        kind=kind,
        created_by=f"phosphene {__version__}",
        inputs=inputs,
        config=config,
        files=dict(sorted(files.items())),
    )
    write_durably(partial / MANIFEST_NAME, manifest.to_bytes())
    for folder in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
        sync_path(folder)
    partial.rename(target)
    sync_path(target.parent)
    return manifest
