"""Contestants as processes that build once and make a pass whenever they are told to; ends what it started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.index_load.contestant import Task
from benchmarks.index_load.synthetic import Recipe

__all__ = ["ContestantFailed", "Running"]

# One thread each, whatever library has a pool.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


class ContestantFailed(Exception):
    """A contestant's process ended; its text is the last that it said."""


class Running:
    """One contestant's process; a context manager."""

    def __init__(self, name: str, module: str, python: Path, recipe: Recipe, folder: Path) -> None:
        """Start it and wait until it has built.

        Args:
            name: of its rows and its scratch folder.
            module: what the process runs.
            python: which Python runs it.
            recipe: the images.
            folder: holds them, under the recipe's name.

        Raises:
            ContestantFailed: it ended instead.
        """
        self.name = name
        scratch = folder / "scratch" / f"{name}-{recipe.image_count}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self._log = scratch.with_suffix(".log")
        task = Task(folder=str(folder / recipe.name), scratch=str(scratch), recipe=asdict(recipe))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", module, task.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | _ONE_THREAD,
            )
        self._scratch = scratch
        try:
            self.built = self._read()
        except ContestantFailed:
            self._end()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, **settings: Any) -> dict[str, Any]:
        """Let it make a pass over all queries.

        Raises:
            ContestantFailed: it ended instead.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _end(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise ContestantFailed(lines[-1] if lines else "it ended without a word")
