"""Where an unfinished index grows: `OUT.partial`, with one folder per finished shard; knows nothing of their contents.

    OUT.partial/plan.json                 whose work this is
    OUT.partial/shards/NNNNN/             a finished shard; record.json, its last file, holds the digests of the others
    OUT.partial/shards/NNNNN.draft/       a shard being written
    OUT.partial/index/                    the index being put together; renamed to OUT at the very end

A killed job leaves such a folder behind, and the next run of the same plan goes on from it. That of another plan is set
aside as `OUT.partial-PLAN`, and taken back when its plan is run again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from index.plan import Plan, ShardRows
from phosphene.errors import SettingError
from phosphene.manifest import canonical_json, digest_of, file_sha256, partial_path, sync_folder, write_durably

__all__ = ["Workspace", "discard_workspace", "open_workspace"]

_PLAN = "plan.json"
_PLAN_DRAFT = "plan.json.draft"
_RECORD = "record.json"


class Workspace:
    """The folder of one job; hold it through `open_workspace`."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which the caller has locked."""
        self._folder = folder

    @property
    def draft_index(self) -> Path:
        """Where the index is put together."""
        return self._folder / "index"

    def shard_folder(self, shard: ShardRows) -> Path:
        """Return where a finished shard lies."""
        return self._folder / "shards" / shard.name

    def is_finished(self, shard: ShardRows) -> bool:
        """Tell whether a shard lies there whole; every file is read and its digest compared."""
        folder = self.shard_folder(shard)
        record = _read_json(folder / _RECORD)
        if record is None or record.get("rows") != [shard.start, shard.stop]:
            return False
        digests = record.get("files")
        if not isinstance(digests, dict):
            return False
        return digests == _digests(folder)

    def write_shard(self, shard: ShardRows, write: Callable[[Path], None]) -> None:
        """Write a shard so that it is either whole or absent.

        Args:
            shard: which one.
            write: fills the empty folder that it is given.
        """
        target = self.shard_folder(shard)
        draft = target.with_name(target.name + ".draft")
        for stale in (draft, target):
            if stale.exists():
                shutil.rmtree(stale)
        draft.mkdir(parents=True)
        write(draft)
        record = {"rows": [shard.start, shard.stop], "files": _digests(draft)}
        for path in draft.rglob("*"):
            _sync(path)
        write_durably(draft / _RECORD, canonical_json(record))
        draft.rename(target)
        sync_folder(target.parent)

    def fresh_draft(self) -> Path:
        """Return the empty folder in which the index is put together."""
        if self.draft_index.exists():
            shutil.rmtree(self.draft_index)
        self.draft_index.mkdir()
        return self.draft_index


@contextmanager
def open_workspace(out: Path, plan: Plan, *, report: Callable[[str], None]) -> Iterator[Workspace]:
    """Hold the workspace of a job, alone.

    Args:
        out: the index to be.
        plan: the job; a leftover of another plan is set aside.
        report: takes a sentence for the person who waits.

    Raises:
        SettingError: another process is building the same index.
    """
    folder = partial_path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        with _locked(folder):
            found = _read_json(folder / _PLAN)
            if found != plan.to_config() and any(path.name != _PLAN_DRAFT for path in folder.iterdir()):
                aside = _set_aside(folder, found)
                report(f"{folder.name} belongs to another plan; it lies in {aside.name} now: remove it if you are done")
    kept = folder.with_name(f"{folder.name}-{plan.id[:12]}")
    if not folder.exists() and kept.exists():
        kept.rename(folder)
        report(f"{kept.name} holds work of this plan; it goes on from there")
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        if _read_json(folder / _PLAN) is None:
            write_durably(folder / _PLAN, canonical_json(plan.to_config()))
        yield Workspace(folder)


def discard_workspace(out: Path, plan: Plan) -> None:
    """Remove the workspace of a finished job, if it is this plan's."""
    folder = partial_path(out)
    if _read_json(folder / _PLAN) == plan.to_config():
        # The plan goes last: a job killed in between is known by it.
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        (folder / _PLAN).unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(
                f"another process is building in {folder.name}; wait for it, or choose another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _set_aside(folder: Path, found: dict[str, object] | None) -> Path:
    name = digest_of(found)[:12] if found is not None else "unknown"
    aside = folder.with_name(f"{folder.name}-{name}")
    if aside.exists():
        shutil.rmtree(aside)
    folder.rename(aside)
    return aside


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _RECORD)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _read_json(path: Path) -> dict[str, object] | None:
    """Return a JSON object, or None where there is none: a killed job may leave half of one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
