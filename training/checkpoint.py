"""Where a training run stands, on disk: safetensors beside JSON, each checkpoint whole or absent.

A checkpoint is written to a `.partial` folder and renamed; the newest sound one of the same plan is resumed from, and
anything else is passed over. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from phosphene.manifest import file_sha256, partial_path, sync_folder, write_durably

_STATE_NAME = "state.safetensors"
_RECORD_NAME = "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A moment of a run."""

    step: int
    """Optimiser steps done."""
    tensors: dict[str, Tensor]
    """Everything the next step depends on."""


class CheckpointFolder:
    """The checkpoints of one plan; keeps the newest."""

    def __init__(self, path: Path, *, plan_id: str, every_steps: int = 250) -> None:
        """Keep checkpoints of the plan under `path`, one every so many steps."""
        self._path = path
        self._plan_id = plan_id
        self.every_steps = every_steps

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint durably, then drop the older ones."""
        target = self._path / f"step-{checkpoint.step:09d}"
        partial = partial_path(target)
        for leftover in (partial, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()},
            partial / _STATE_NAME,
        )
        record = {
            "plan_id": self._plan_id,
            "step": checkpoint.step,
            "sha256": file_sha256(partial / _STATE_NAME),
        }
        with (partial / _STATE_NAME).open("rb") as file:
            os.fsync(file.fileno())
        write_durably(partial / _RECORD_NAME, json.dumps(record).encode())
        partial.rename(target)
        sync_folder(self._path)
        for older in self._path.iterdir():
            if older != target:
                shutil.rmtree(older)

    def load_newest(self) -> Checkpoint | None:
        """The newest sound checkpoint of this plan; None where there is none."""
        if not self._path.is_dir():
            return None
        for folder in sorted(self._path.glob("step-*[0-9]"), reverse=True):
            checkpoint = self._load(folder)
            if checkpoint is not None:
                return checkpoint
        return None

    def remove(self) -> None:
        """Drop all checkpoints: the run is over."""
        if self._path.exists():
            shutil.rmtree(self._path)

    def _load(self, folder: Path) -> Checkpoint | None:
        # Digest before parsing; a checkpoint only saves time, so an unsound one is ignored rather than reported.
        state, record_file = folder / _STATE_NAME, folder / _RECORD_NAME
        if not (state.is_file() and record_file.is_file()):
            return None
        try:
            record = json.loads(record_file.read_bytes())
        except ValueError:
            return None
        if record.get("plan_id") != self._plan_id or record.get("sha256") != file_sha256(state):
            return None
        return Checkpoint(step=int(record["step"]), tensors=load_file(state))
