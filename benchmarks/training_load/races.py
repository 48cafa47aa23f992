"""Runs contestants, each in a process of its own, and keeps a row for each run and the samples of the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.samples import Samples
from benchmarks.training_load.contestant import Task
from benchmarks.training_load.known_directions import Recipe, make_data
from benchmarks.training_load.peers import Peer
from benchmarks.training_load.quality import Quality, judge
from phosphene.errors import NumericError

__all__ = ["K", "Entry", "Races", "Shape", "Steps", "gemm", "ours", "peer"]

K = 32
_PACKAGE = "benchmarks.training_load"
_RUN_LIMIT_S = 1800
_LEARNING_RATE = 3e-3
_DEAD_AFTER_STEPS = 1000
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant as it enters a race."""

    name: str
    """Its samples are called `RACE.NAME.per_s`, ..."""
    module: str
    """What its process runs."""
    python: Path
    """The Python that it runs in."""
    variant: str = "batchtopk"
    """See `Task`."""
    precision: str = "float32"
    """See `Task`."""
    optimiser: str = ""
    """See `Task`."""
    is_peer: bool = False
    """Whether its failure is its own, and ends nothing."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a race."""

    name: str
    """For samples and tables."""
    recipe: Recipe
    """The data."""
    neuron_count: int
    """Neurons."""
    batch_rows: int = 1024
    """Rows of a batch."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How long a race is; the untimed steps come first."""

    untimed: int
    """Steps before the clock starts."""
    ours: int
    """Steps that are timed of Phosphene, and of the bare product."""
    peers: int
    """Steps that are timed of a peer: it takes longer over each."""


def ours(variant: str = "batchtopk", precision: str = "float32") -> Entry:
    """Phosphene."""
    marks = [mark for mark, usual in ((variant, "batchtopk"), (precision, "float32")) if mark != usual]
    return Entry(
        name=" ".join(["Phosphene", *marks]),
        module=f"{_PACKAGE}.ours",
        python=Path(sys.executable),
        variant=variant,
        precision=precision,
    )


def gemm() -> Entry:
    """The product that no encoder avoids."""
    return Entry(name="GEMM", module=f"{_PACKAGE}.gemm", python=Path(sys.executable))


def peer(name: Peer, python: Path, optimiser: str = "") -> Entry:
    """A peer in its environment."""
    shown = f"{name} {optimiser}".strip()
    return Entry(name=shown, module=f"{_PACKAGE}.peer_{name}", python=python, optimiser=optimiser, is_peer=True)


class Races:
    """Runs races and trainings."""

    def __init__(self, folder: Path, *, thread_count: int, say: Callable[[str], None]) -> None:
        """Keep what every run needs.

        Args:
            folder: for data and weights.
            thread_count: threads of every contestant in a race.
            say: told of every run as it ends.
        """
        self.samples = Samples()
        self.rows: list[Row] = []
        self._folder, self._thread_count, self._say = folder, thread_count, say

    def race(self, shape: Shape, steps: Steps, entries: Sequence[Entry], round_number: int) -> None:
        """Let every contestant run once, one after another."""
        data = make_data(shape.recipe, self._folder)
        for entry in entries:
            timed_steps = steps.peers if entry.is_peer else steps.ours
            task = self._task(shape, data, entry, steps.untimed, timed_steps)
            task = replace(task, dead_after_samples=_DEAD_AFTER_STEPS * shape.batch_rows)
            answer = self._run(entry, task)
            if answer is None:
                self._failed(shape, entry, round_number)
                continue
            place = f"{shape.name}.{entry.name}"
            self.samples.add(f"{place}.per_s", answer["samples"] / answer["wall_s"])
            self.samples.add(f"{place}.per_cpu_s", answer["samples"] / answer["cpu_s"])
            self.samples.add(f"{place}.peak_mib", answer["peak_mib"])
            self._keep(shape, entry, round_number, answer)

    def train(self, shape: Shape, step_count: int, rate: float, trainings: Sequence[tuple[Entry, int]]) -> None:
        """Train each contestant with its seed from start to end, as many at a time as threads, and judge the weights.

        Samples are called `SHAPE.RATE.NAME.fvu`, `.mmcs` and `.l0`.
        """
        data = make_data(shape.recipe, self._folder)
        thread_count = max(1, self._thread_count // len(trainings))

        def one(training: tuple[Entry, int]) -> tuple[dict[str, Any], Quality] | None:
            entry, seed = training
            weights = self._folder / f"weights-{entry.name.replace(' ', '-')}-{seed}.npz"
            untimed_steps = step_count // 20
            task = self._task(shape, data, entry, untimed_steps, step_count - untimed_steps)
            task = replace(task, learning_rate=rate, seed=seed, thread_count=thread_count, weights=str(weights))
            answer = self._run(entry, task)
            if answer is None:
                return None
            try:
                return answer, judge(weights, data, K)
            except NumericError as reason:
                if not entry.is_peer:
                    raise
                self._say(f"{entry.name} cannot be judged: {reason}")
                return None
            finally:
                weights.unlink()

        with ThreadPoolExecutor(self._thread_count) as pool:
            for (entry, seed), found in zip(trainings, pool.map(one, trainings), strict=True):
                if found is None:
                    self._failed(shape, entry, seed)
                    continue
                answer, quality = found
                for name in ("fvu", "mmcs", "l0"):
                    self.samples.add(f"{shape.name}.{rate:g}.{entry.name}.{name}", getattr(quality, name))
                self._keep(shape, entry, seed, answer, quality, note=f"{step_count} steps, lr {rate:g}")

    def remark(self, note: str) -> None:
        """Keep a finding in words as a row of its own."""
        self.rows.append(_row("", "", "", note=note))
        self._say(note)

    def _task(self, shape: Shape, data: Path, entry: Entry, untimed_steps: int, timed_steps: int) -> Task:
        return Task(
            data=str(data / "training.npy"),
            neuron_count=shape.neuron_count,
            k=K,
            batch_rows=shape.batch_rows,
            untimed_steps=untimed_steps,
            timed_steps=timed_steps,
            learning_rate=_LEARNING_RATE,
            seed=0,
            thread_count=self._thread_count,
            variant=entry.variant,
            precision=entry.precision,
            optimiser=entry.optimiser,
        )

    def _run(self, entry: Entry, task: Task) -> dict[str, Any] | None:
        # A peer that fails is missing from the figures; Phosphene failing ends the benchmark.
        variables = dict(os.environ) | {"OMP_NUM_THREADS": str(task.thread_count), "HF_HUB_OFFLINE": "1"}
        command = (str(entry.python), "-m", entry.module, task.to_json())
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=_RUN_LIMIT_S, check=False)
        if done.returncode != 0:
            if not entry.is_peer:
                raise RuntimeError(f"{entry.name} ended with {done.returncode}:\n{done.stderr}")
            self._say(f"{entry.name} failed: {(done.stderr.splitlines() or ['no reason given'])[-1]}")
            return None
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def _failed(self, shape: Shape, entry: Entry, number: int) -> None:
        self.rows.append(_row(shape.name, number, entry.name, note="failed: not compared"))

    def _keep(
        self,
        shape: Shape,
        entry: Entry,
        number: int,
        answer: dict[str, Any],
        quality: Quality | None = None,
        note: str = "",
    ) -> None:
        row = _row(
            shape.name,
            number,
            entry.name,
            per_s=round(answer["samples"] / answer["wall_s"]),
            per_cpu_s=round(answer["samples"] / answer["cpu_s"]),
            peak_mib=round(answer["peak_mib"]),
            note=note,
        )
        if "fvu_after" in answer:
            row["FVU"] = f"{answer['fvu_before']:.3f} -> {answer['fvu_after']:.3f}"
            if not answer["fvu_after"] < answer["fvu_before"]:
                row["note"] = f"{note} did not learn".strip()
        if quality is not None:
            row |= {
                "held-out FVU": round(quality.fvu, 4),
                "MMCS": round(quality.mmcs, 4),
                "L0": round(quality.l0, 2),
            }
        self.rows.append(row)
        told = f", FVU {row['FVU']}" if "fvu_after" in answer else ""
        if quality is not None:
            told = f", held-out FVU {quality.fvu:.4f}, MMCS {quality.mmcs:.4f}"
        self._say(
            f"{shape.name:<15} {entry.name:<20} {row['samples/s']:>6} samples/s, "
            f"{row['samples/CPU s']:>6} per CPU-second, {row['MiB']:>5} MiB{told} {row['note']}"
        )


def _row(
    race: str,
    number: int | str,
    contestant: str,
    *,
    per_s: int | str = "-",
    per_cpu_s: int | str = "-",
    peak_mib: int | str = "-",
    note: str = "",
) -> Row:
    return {
        "race": race,
        "round or seed": number,
        "contestant": contestant,
        "samples/s": per_s,
        "samples/CPU s": per_cpu_s,
        "MiB": peak_mib,
        "FVU": "-",
        "held-out FVU": "-",
        "MMCS": "-",
        "L0": "-",
        "note": note,
    }
