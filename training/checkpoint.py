"""Where a training run stands, on disk: safetensors beside JSON, each checkpoint whole or absent, the last two kept.

A checkpoint is written to a `.partial` folder and renamed. Digests are checked before anything is parsed; one that is
damaged is put aside, reported by whoever loads, and the one before it is used. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from phosphene.durable_files import sync_path, write_durably
from phosphene.manifest import canonical_json, digest_of, file_sha256, partial_path

KEPT_COUNT = 2
"""Checkpoints that are kept: the newest may turn out to be damaged."""

_STATE_NAME = "state.safetensors"
_RECORD_NAME = "checkpoint.json"
_SOUND_NAMES = "step-*[0-9]"
_DAMAGED_SUFFIX = ".damaged"
_GOING_SUFFIX = ".going"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A moment of a run."""

    step: int
    """Optimiser steps done."""
    tensors: dict[str, Tensor]
    """Everything the next step depends on."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the run has counted so far, by name."""
    averages: Mapping[str, float] = field(default_factory=dict)
    """Moving averages that the run goes on with, by name."""


class Damage(NamedTuple):
    """A checkpoint that cannot be used."""

    file: Path
    """The file that is at fault."""
    reason: str
    """What is wrong with it."""


class Loaded(NamedTuple):
    """What lies in a folder of checkpoints."""

    checkpoint: Checkpoint | None
    """The newest sound one; None where there is none."""
    damages: tuple[Damage, ...]
    """Newer ones that cannot be used, newest first; put aside under the suffix `.damaged`."""


class CheckpointFolder:
    """The checkpoints of one plan."""

    def __init__(
        self,
        path: Path,
        *,
        plan_id: str,
        every_steps: int = 250,
        time_share: float = 0.05,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep checkpoints of the plan under `path`.

        Args:
            path: the folder; made by the first checkpoint.
            plan_id: what the checkpoints belong to.
            every_steps: steps between two of them, at least.
            time_share: share of the time that writing them may take; the next one waits until it is kept. 1 never
                waits.
            clock_s: monotonic seconds.
        """
        self.path = path
        self._plan_id = plan_id
        self._every_steps = every_steps
        self._patience = (1 - time_share) / time_share
        self._clock_s = clock_s
        self._took_s = 0.0
        self._ended_s = clock_s()

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        if step % self._every_steps:
            return False
        return self._clock_s() - self._ended_s >= self._patience * self._took_s

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint durably, then drop all but the last two.

        Raises:
            OSError: the disk is full or read-only; the ones before are still there.
        """
        began_s = self._clock_s()
        target = self.path / f"step-{checkpoint.step:09d}"
        partial = partial_path(target)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        try:
            save_file(tensors, partial / _STATE_NAME)
        except SafetensorError as cause:  # That is how it reports a full disk.
            raise OSError(f"checkpoint {str(target)!r} cannot be written: {cause}") from cause
        with (partial / _STATE_NAME).open("rb") as file:
            os.fsync(file.fileno())
        record = {
            "plan_id": self._plan_id,
            "step": checkpoint.step,
            "counts": dict(checkpoint.counts),
            "averages": dict(checkpoint.averages),
            "sha256": file_sha256(partial / _STATE_NAME),
        }
        write_durably(partial / _RECORD_NAME, canonical_json(record | {"check": digest_of(record)}))
        self._drop(target)
        partial.rename(target)
        sync_path(self.path)
        for older in self._newest_first()[KEPT_COUNT:]:
            self._drop(older)
        for leftover in self.path.glob(f"*{_GOING_SUFFIX}"):
            shutil.rmtree(leftover)
        self._ended_s = self._clock_s()
        self._took_s = self._ended_s - began_s

    def load_newest(self) -> Loaded:
        """The newest sound checkpoint, and what had to be passed over for it."""
        damages: list[Damage] = []
        for folder in self._newest_first():
            found = self._load(folder)
            if isinstance(found, Checkpoint):
                return Loaded(found, tuple(damages))
            damages.append(found)
            aside = folder.with_name(folder.name + _DAMAGED_SUFFIX)
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
        return Loaded(None, tuple(damages))

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, whether or not it is sound; None where there is none."""
        folders = self._newest_first()
        return int(folders[0].name.removeprefix("step-")) if folders else None

    def _newest_first(self) -> list[Path]:
        return sorted(self.path.glob(_SOUND_NAMES), reverse=True) if self.path.is_dir() else []

    def _drop(self, folder: Path) -> None:
        # Renamed first: a kill within a removal must not leave a checkpoint that looks damaged.
        if not folder.exists():
            return
        going = folder.with_name(folder.name + _GOING_SUFFIX)
        if going.exists():
            shutil.rmtree(going)
        folder.rename(going)
        shutil.rmtree(going)

    def _load(self, folder: Path) -> Checkpoint | Damage:
        state, record_file = folder / _STATE_NAME, folder / _RECORD_NAME
        for file in (state, record_file):
            if not file.is_file():
                return Damage(file, "it is gone")
        try:
            record = json.loads(record_file.read_bytes())
            check = record.pop("check")
            is_sound = check == digest_of(record)
        except (ValueError, AttributeError, KeyError):
            is_sound = False
        if not is_sound:
            return Damage(record_file, "it is not as it was written")
        if record["plan_id"] != self._plan_id:
            return Damage(record_file, "it belongs to another run")
        if record["sha256"] != file_sha256(state):
            return Damage(state, "its digest differs from the record's")
        return Checkpoint(
            step=record["step"],
            tensors=load_file(state),
            counts=record["counts"],
            averages=record.get("averages", {}),  # Older checkpoints have none; averages decide no weight.
        )
