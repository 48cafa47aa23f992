"""The folder of one training run below `--work`: what it is, its checkpoints, its curve.

    training/RUN/run.json         what is trained, for which bundle, and how it ended
    training/RUN/checkpoints/     see `training/checkpoint.py`; gone once the bundle is published
    training/RUN/journal.jsonl    see `training/journal.py`; stays

RUN is a digest of place and configuration, so that a run is found again by what it is. Knows nothing of learners.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phosphene.durable_files import write_durably
from phosphene.errors import ArtefactMismatch
from phosphene.manifest import canonical_json, differences, digest_of

PUBLISHED = "published"
"""How a run ends well."""

_RECORD_NAME = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What `run.json` says."""

    id: str
    """Digest of `out` and `config`."""
    out: str
    """Where its bundle goes, relative to the folder that holds the runs."""
    config: dict[str, Any]
    """Everything that decides the bits of the result."""
    outcome: str | None
    """`published`, or why it was not; None as long as it goes on, and after a kill."""


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        """Keep where it is and what it is."""
        self.path = path
        self.record = record

    @property
    def id(self) -> str:
        """Short name of the run: 16 hexadecimal digits."""
        return self.record.id[:16]

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints go."""
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        """Where its curve goes by default."""
        return self.path / "journal.jsonl"

    def end(self, outcome: str) -> None:
        """Keep how it ended: other configurations may now be tried for the same bundle.

        Once it is published, its checkpoints go, and so do those of every other try at the same bundle.
        """
        self.record = RunRecord(**asdict(self.record) | {"outcome": outcome})
        _write(self.path, self.record)
        if outcome == PUBLISHED:
            for run in _runs_of(self.path.parent, self.record.out):
                shutil.rmtree(run.checkpoints, ignore_errors=True)


def begin_run(folder: Path, *, out: Path, config: dict[str, Any]) -> RunFolder:
    """The folder of the run of this configuration, made or found.

    Args:
        folder: holds the runs.
        out: where its bundle goes.
        config: everything that decides the bits of the result.

    Raises:
        ArtefactMismatch: a run of another configuration for the same bundle has been stopped half-way there.
    """
    place = os.path.relpath(out.absolute(), folder.absolute())
    run_id = digest_of({"out": place, "config": config})
    record = RunRecord(id=run_id, out=place, config=config, outcome=None)
    for other in _runs_of(folder, record.out):
        if other.record.outcome is None and other.record.id != record.id:
            lines = "".join(f"\n  {line}" for line in differences(config, other.record.config))
            raise ArtefactMismatch(
                f"{str(other.path)!r} holds an unfinished run of another configuration for {out.name!r} "
                f"(there -> asked for):{lines}\n"
                "give the same options to go on with it, remove that folder to give it up, or choose another --work"
            )
    path = folder / record.id[:16]
    path.mkdir(parents=True, exist_ok=True)
    _write(path, record)
    return RunFolder(path, record)


def _runs_of(folder: Path, out: str) -> list[RunFolder]:
    found = [(path.parent, _read(path)) for path in sorted(folder.glob(f"*/{_RECORD_NAME}"))]
    return [RunFolder(path, record) for path, record in found if record is not None and record.out == out]


def _read(path: Path) -> RunRecord | None:
    # Written whole or not at all: what does not read is not ours.
    try:
        return RunRecord(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return None


def _write(path: Path, record: RunRecord) -> None:
    write_durably(path / _RECORD_NAME, canonical_json(asdict(record)) + b"\n")
