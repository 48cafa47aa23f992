"""Where an unfinished index grows: `OUT.partial`, with one folder per finished shard; knows nothing of their contents.

    OUT.partial/plan.json                 whose work this is
    OUT.partial/drafts/NNNNN/             a shard being written
    OUT.partial/index/                    the index being put together; renamed to OUT at the very end
    OUT.partial/index/shards/NNNNN/       a finished shard; record.json, its last file, holds the digests of the others

A killed job leaves such a folder behind, and the next run of the same plan goes on from it. That of another plan is set
aside as `OUT.partial-PLAN`, and taken back when its plan is run again. One job holds the folder; the processes that
work for it hold `drafts/`, so that no other job begins while one of them, its parent killed, is still about to end.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from index.plan import SHARDS_FOLDER, Plan, ShardRows
from phosphene.manifest import (
    canonical_json,
    digest_of,
    file_sha256,
    hold_folder,
    partial_path,
    sync_folder,
    write_durably,
)

__all__ = ["Workspace", "discard_workspace", "open_workspace"]

_PLAN = "plan.json"
_PLAN_DRAFT = "plan.json.draft"
_RECORD = "record.json"


class Workspace:
    """The folder of one job; hold it through `open_workspace`."""

    def __init__(self, folder: Path, device: str) -> None:
        """Take the folder, which the caller holds, and the kind of device that this run computes on."""
        self._folder = folder
        self._device = device

    @property
    def draft_index(self) -> Path:
        """Where the index is put together."""
        return self._folder / "index"

    @property
    def drafts(self) -> Path:
        """Where shards are written."""
        return self._folder / "drafts"

    @property
    def quarantine_report(self) -> Path:
        """Where a job that ends for too many bad images names them."""
        return self._folder / "quarantine.csv"

    def shard_folder(self, shard: ShardRows) -> Path:
        """Return where a finished shard lies."""
        return self.draft_index / SHARDS_FOLDER / shard.name

    def is_finished(self, shard: ShardRows) -> bool:
        """Tell whether a shard lies there whole, made on this kind of device; reads every file and compares its digest.

        Devices differ in the last bits of a code: an index that mixes two has an id that no run on one of them has.
        """
        folder = self.shard_folder(shard)
        record = _read_json(folder / _RECORD)
        if record is None or record.get("rows") != [shard.start, shard.stop] or record.get("device") != self._device:
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
        draft = self.drafts / shard.name
        for stale in (draft, target):
            if stale.exists():
                shutil.rmtree(stale)
        draft.mkdir(parents=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        record = {"rows": [shard.start, shard.stop], "device": self._device, "files": _digests(draft)}
        for path in draft.rglob("*"):
            _sync(path)
        write_durably(draft / _RECORD, canonical_json(record))
        draft.rename(target)
        sync_folder(target.parent)

    def fresh_draft(self) -> Path:
        """Return the folder in which the index is put together; it holds the finished shards and nothing else."""
        for path in self.draft_index.iterdir():
            if path.name != SHARDS_FOLDER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.draft_index

    @contextmanager
    def held_by_worker(self) -> Iterator[None]:
        """Tell other jobs that a process of this one is at work; let go of at its end, also by a kill."""
        with _locked(self.drafts, fcntl.LOCK_SH):
            yield

    def wait_for_workers(self) -> None:
        """Return once no process of a killed job is at work here; such a process ends by itself, at once."""
        self.drafts.mkdir(exist_ok=True)
        with _locked(self.drafts, fcntl.LOCK_EX):
            pass


@contextmanager
def open_workspace(out: Path, plan: Plan, *, device: str, report: Callable[[str], None]) -> Iterator[Workspace]:
    """Hold the workspace of a job, alone.

    Args:
        out: the index to be.
        plan: the job; a leftover of another plan is set aside.
        device: kind of device that computes: `cpu` or `cuda`; shards of another kind are made again.
        report: takes a sentence for the person who waits.

    Raises:
        SettingError: another process is building the same index.
    """
    folder = partial_path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        with hold_folder(folder):
            found = _read_json(folder / _PLAN)
            if found != plan.to_config() and any(path.name != _PLAN_DRAFT for path in folder.iterdir()):
                aside = _set_aside(folder, found)
                report(f"{folder.name} belongs to another plan; it lies in {aside.name} now: remove it if you are done")
    kept = folder.with_name(f"{folder.name}-{plan.id[:12]}")
    if not folder.exists() and kept.exists():
        kept.rename(folder)
        report(f"{kept.name} holds work of this plan; it goes on from there")
    folder.mkdir(exist_ok=True)
    with hold_folder(folder):
        if _read_json(folder / _PLAN) is None:
            write_durably(folder / _PLAN, canonical_json(plan.to_config()))
        workspace = Workspace(folder, device)
        workspace.wait_for_workers()
        yield workspace


def discard_workspace(out: Path, plan: Plan) -> None:
    """Remove the workspace of a finished job, if it is this plan's; another process may be doing the same."""
    folder = partial_path(out)
    if _read_json(folder / _PLAN) == plan.to_config():
        # The plan goes last: a job killed in between is known by it.
        for path in _entries(folder):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _PLAN:
                path.unlink(missing_ok=True)
        (folder / _PLAN).unlink(missing_ok=True)
    if not _entries(folder):
        with suppress(OSError):
            folder.rmdir()


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


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


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
