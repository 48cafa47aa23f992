"""What every contestant is measured with, in a process of its own: the task, the batches, the clock, the memory.

Runs in Phosphene's environment and in every peer's: needs numpy and torch alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Contestant", "Task", "compete", "decay_steps", "learning_rate_share", "measure", "warm_up_steps"]

_WARM_UP_SHARE = 0.05
_DECAY_SHARE = 0.4
_JUDGED_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant is asked to train."""

    data: str
    """A .npy file of rows."""
    neuron_count: int
    """Neurons of the autoencoder."""
    k: int
    """Active neurons per row, on average."""
    batch_rows: int
    """Rows of a batch."""
    untimed_steps: int
    """Steps before the clock starts."""
    timed_steps: int
    """Steps that the clock sees."""
    learning_rate: float
    """Its peak: rises over the first 5 % of the steps, falls to zero over the last 40 %."""
    seed: int
    """Decides the weights at the start and the order of the rows."""
    thread_count: int = 2
    """Threads of torch."""
    variant: str = "batchtopk"
    """`batchtopk` or `topk`, where a contestant has both."""
    precision: str = "float32"
    """Of the search for active neurons, where a contestant has several: `float32` or `bfloat16`."""
    optimiser: str = ""
    """Which optimiser, where a contestant has several."""
    dead_after_samples: int = 0
    """Where neurons count as dead after so many samples; 0 leaves that to the contestant."""
    weights: str = ""
    """Where to leave the trained weights as .npz; empty leaves none."""

    @property
    def step_count(self) -> int:
        """All steps."""
        return self.untimed_steps + self.timed_steps

    def to_json(self) -> str:
        """As the contestants' command line takes it."""
        return json.dumps(asdict(self))


class Contestant(Protocol):
    """One library with an autoencoder at step zero."""

    def train(self, batches: Iterator[Tensor]) -> None:
        """One step for each batch, with the library's own step or loop."""

    def weights(self) -> dict[str, Tensor]:
        """`encoder_weight` [d, neurons], `encoder_bias`, `directions` [neurons, d], `decoder_bias`; may be live.

        They mean: pre-activations are (x - decoder_bias) @ encoder_weight + encoder_bias, and a reconstruction is
        codes @ directions + decoder_bias. Empty where nothing is trained.
        """


def warm_up_steps(task: Task) -> int:
    """Steps over which the learning rate rises."""
    return max(1, math.ceil(task.step_count * _WARM_UP_SHARE))


def decay_steps(task: Task) -> int:
    """Steps over which it falls."""
    return max(1, math.ceil(task.step_count * _DECAY_SHARE))


def learning_rate_share(task: Task, step: int) -> float:
    """The learning rate at a step as a share of its peak."""
    return min(1.0, (step + 1) / warm_up_steps(task), (task.step_count - step) / decay_steps(task))


def compete(make: Callable[[Task, Tensor], Contestant]) -> None:
    """Do the task on the command line and print one line of JSON; the last words of every contestant's process.

    Args:
        make: see `measure`.
    """
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.thread_count)
    answer = measure(task, make)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def measure(task: Task, make: Callable[[Task, Tensor], Contestant]) -> dict[str, float]:
    """Train, and tell wall and processor seconds of the timed steps, their samples, memory, and FVU before and after.

    Args:
        task: what to train.
        make: gives the contestant at step zero for a task and its rows; called when the libraries are imported and the
            rows are read, so that memory counts from there.
    """
    rows = torch.from_numpy(np.load(task.data))
    base_bytes = _forget_peak()
    contestant = make(task, rows)
    clock = _Clock()
    contestant.train(_batches(task, rows, clock))
    clock.stop()
    answer = {
        "wall_s": clock.wall_s,
        "cpu_s": clock.cpu_s,
        "samples": task.timed_steps * task.batch_rows,
        "peak_mib": (_status_kib("VmHWM") * 1024 - base_bytes) / (1 << 20),
    }
    trained = {name: tensor.detach().numpy() for name, tensor in contestant.weights().items()}
    if trained:
        if task.weights:
            np.savez(Path(task.weights), **trained)
        fresh = {name: tensor.detach().numpy() for name, tensor in make(task, rows).weights().items()}
        judged = rows[:_JUDGED_ROWS]
        answer |= {
            "fvu_before": _rough_fvu(fresh, judged, task.k),
            "fvu_after": _rough_fvu(trained, judged, task.k),
        }
    return answer


class _Clock:
    """Wall and processor time of this process and its children."""

    def __init__(self) -> None:
        """Not started."""
        self.wall_s = self.cpu_s = 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Begin."""
        self._since = (time.perf_counter(), _cpu_s())

    def stop(self) -> None:
        """End; the first call counts."""
        if self._since is not None:
            self.wall_s, self.cpu_s = time.perf_counter() - self._since[0], _cpu_s() - self._since[1]
            self._since = None


def _batches(task: Task, rows: Tensor, clock: _Clock) -> Iterator[Tensor]:
    # The same rows in the same order for everybody: each pass is shuffled anew, and ends with its last whole batch.
    generator = np.random.default_rng([task.seed, 0])
    per_pass = len(rows) // task.batch_rows
    order = torch.empty(0)
    for step in range(task.step_count):
        place = step % per_pass
        if place == 0:
            order = torch.from_numpy(generator.permutation(len(rows)))
        if step == task.untimed_steps:
            clock.start()
        yield rows[order[place * task.batch_rows : (place + 1) * task.batch_rows]]
    clock.stop()


def _rough_fvu(weights: dict[str, np.ndarray], rows: Tensor, k: int) -> float:
    # Whether training did anything; the races judge quality elsewhere, with a calibrated threshold.
    encoder, bias, directions, centre = (
        torch.from_numpy(weights[name]) for name in ("encoder_weight", "encoder_bias", "directions", "decoder_bias")
    )
    pre_activations = (rows - centre) @ encoder + bias
    threshold = pre_activations.flatten().topk(k * len(rows)).values[-1].clamp_min(0)
    codes = torch.where(pre_activations >= threshold, pre_activations, 0)
    error = rows - codes @ directions - centre
    return float(error.square().sum() / (rows - rows.mean(dim=0)).square().sum())


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _forget_peak() -> int:
    # From here on the kernel keeps a new peak, so that what an import needed for a moment hides nothing. Where that is
    # not permitted, the old peak counts: for everybody alike.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS") * 1024


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
