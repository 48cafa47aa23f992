"""Where an unfinished index grows: `OUT.partial`, with one folder per finished shard; knows nothing of their contents.

    OUT.partial/plan.json                 whose work this is
    OUT.partial/digests.npy               sha256 of every row's bytes, where the job runs in parts
    OUT.partial/drafts/NNNNN-XXXXXXXX/    a shard being written, by the one process that holds this folder
    OUT.partial/index/                    the index being put together; renamed to OUT at the very end
    OUT.partial/index/shards/NNNNN/       a finished shard; record.json, its last file, holds the digests of the others

A killed job leaves such a folder behind, and the next run of the same plan goes on from it. That of another plan is set
aside as `OUT.partial-PLAN`, and taken back when its plan is run again. One job holds the folder, or any number of parts
of one job share it; the processes that work for a job hold `drafts/`, so that no other job begins while one of them,
its parent killed, is still about to end.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from index.plan import SHARDS_FOLDER, Plan, ShardRows
from phosphene.artefact_writing import JOB_PLAN_NAME
from phosphene.durable_files import hold_folder, sync_path, write_durably
from phosphene.errors import ArtefactMissing, SettingError
from phosphene.manifest import canonical_json, digest_of, file_sha256, partial_path

__all__ = ["Workspace", "discard_workspace", "open_workspace", "read_plan", "refuse_source", "share_workspace"]

_PLAN_DRAFT = "plan.json.draft"
_RECORD = "record.json"


class Workspace:
    """The folder of one job; hold it through `open_workspace`."""

    def __init__(self, folder: Path, device: str) -> None:
        """Take the folder, which the caller holds, and the kind of device that this run computes on."""
        self._folder = folder.absolute()  # Workers elsewhere begin in other folders.
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

    @property
    def digests(self) -> Path:
        """Where a job that runs in parts keeps the digests of its images."""
        return self._folder / "digests.npy"

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
        return _digests_hold(folder)

    def write_shard(self, shard: ShardRows, write: Callable[[Path], None]) -> None:
        """Write a shard so that it is either whole or absent.

        Should another process be writing the same shard, neither disturbs the other: the first to end has written it.

        Args:
            shard: which one.
            write: fills the empty folder that it is given.
        """
        target = self.shard_folder(shard)
        for stale in self.drafts.glob(f"{shard.name}-*"):
            _remove_unless_held(stale)
        if target.exists() and not self.is_finished(shard):
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._fresh_draft_of(shard) as draft:
            write(draft)
            record = {"rows": [shard.start, shard.stop], "device": self._device, "files": _digests(draft)}
            for path in draft.rglob("*"):
                sync_path(path)
            write_durably(draft / _RECORD, canonical_json(record))
            try:
                draft.rename(target)
            except OSError:
                if not self.is_finished(shard):
                    raise
                shutil.rmtree(draft)
        sync_path(target.parent)

    @contextmanager
    def _fresh_draft_of(self, shard: ShardRows) -> Iterator[Path]:
        """Make a folder to write a shard in, held so that nobody takes it for what a dead process left."""
        while True:
            draft = self.drafts / f"{shard.name}-{secrets.token_hex(4)}"
            draft.mkdir(parents=True)
            with ExitStack() as stack:
                try:
                    stack.enter_context(_locked(draft, fcntl.LOCK_SH))
                except FileNotFoundError:
                    continue  # Another part found it before it was held, and removed it.
                if draft.exists():
                    yield draft
                    return

    def adopt_shard(self, shard: ShardRows, source: Path) -> None:
        """Take over a shard of a finished index, whose digests have been checked; a kill leaves it whole or absent.

        Its files are hard links where the file system has them: an artefact is never written to.

        Args:
            shard: which one.
            source: its folder in that index.
        """
        target = self.shard_folder(shard)
        if _read_json(target / _RECORD) == _read_json(source / _RECORD) and _digests_hold(target):
            return
        draft = self.drafts / shard.name
        for stale in (draft, target):
            if stale.exists():
                shutil.rmtree(stale)
        draft.mkdir(parents=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            copy = draft / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _link(path, copy)
        draft.rename(target)
        sync_path(target.parent)

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


def refuse_source(out: Path, source: Path) -> None:
    """Refuse to make an index in place of the one that it grows from, before anybody removes that to make room.

    Raises:
        SettingError: both are one folder.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise SettingError(f"--out is {source.name!r} itself, which stays as it is; choose another --out")


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
            found = _read_json(folder / JOB_PLAN_NAME)
            if found != plan.to_config() and any(path.name != _PLAN_DRAFT for path in folder.iterdir()):
                aside = _set_aside(folder, found)
                report(f"{folder.name} belongs to another plan; it lies in {aside.name} now: remove it if you are done")
    kept = folder.with_name(f"{folder.name}-{plan.id[:12]}")
    if not folder.exists() and kept.exists():
        kept.rename(folder)
        report(f"{kept.name} holds work of this plan; it goes on from there")
    folder.mkdir(exist_ok=True)
    with hold_folder(folder):
        found = _read_json(folder / JOB_PLAN_NAME)
        if found is None:
            write_durably(folder / JOB_PLAN_NAME, canonical_json(plan.to_config()))
        elif found != plan.to_config():  # Another job came between, and has gone: its shards are not this plan's.
            raise SettingError(f"another plan came into {folder.name!r} meanwhile; run this one again")
        workspace = Workspace(folder, device)
        workspace.wait_for_workers()
        yield workspace


@contextmanager
def share_workspace(out: Path, *, device: str) -> Iterator[Workspace]:
    """Take part in the job that was planned for `out`; other parts may be at work.

    Raises:
        SettingError: a job that works alone holds it.
        ArtefactMissing: nothing has been planned.
    """
    folder = partial_path(out)
    busy = SettingError(f"another process works in {folder.name!r}; wait for it, or choose another --out")
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(_locked(folder, fcntl.LOCK_SH | fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise busy from error
        except FileNotFoundError as error:
            raise _nothing_planned(out) from error
        # Who held it before may have renamed or removed it between the opening and the lock.
        if not folder.exists() or not os.path.samestat(folder.stat(), os.fstat(descriptor)):
            raise busy
        read_plan(out)
        workspace = Workspace(folder, device)
        workspace.drafts.mkdir(exist_ok=True)
        yield workspace


def read_plan(out: Path) -> Plan:
    """Return the plan of the unfinished job for `out`.

    Raises:
        ArtefactMissing: there is none, or one of another version.
    """
    found = _read_json(partial_path(out) / JOB_PLAN_NAME)
    plan = None if found is None else Plan.from_config(found)
    if plan is None:
        raise _nothing_planned(out)
    return plan


def _nothing_planned(out: Path) -> ArtefactMissing:
    return ArtefactMissing(
        f"no job is planned in {partial_path(out).name!r}; run `python -m index plan` with the same --out first"
    )


def discard_workspace(out: Path, plan: Plan) -> None:
    """Remove the workspace of a finished job, if it is this plan's; another process may be doing the same."""
    folder = partial_path(out)
    if _read_json(folder / JOB_PLAN_NAME) == plan.to_config():
        # The plan goes last: a job killed in between is known by it.
        for path in _entries(folder):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != JOB_PLAN_NAME:
                path.unlink(missing_ok=True)
        (folder / JOB_PLAN_NAME).unlink(missing_ok=True)
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


def _remove_unless_held(draft: Path) -> None:
    """Remove a draft whose writer has died; another part may be doing the same."""
    with suppress(BlockingIOError, FileNotFoundError), _locked(draft, fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(draft, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _RECORD)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _digests_hold(shard: Path) -> bool:
    record = _read_json(shard / _RECORD)
    return record is not None and record.get("files") == _digests(shard)


def _link(source: Path, copy: Path) -> None:
    try:
        os.link(source, copy)
    except OSError:  # Another file system, or one without hard links: `copyfile` says what is wrong if that is not it.
        shutil.copyfile(source, copy)
        sync_path(copy)


def _read_json(path: Path) -> dict[str, object] | None:
    """Return a JSON object, or None where there is none: a killed job may leave half of one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)
