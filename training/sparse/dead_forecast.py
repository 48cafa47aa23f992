"""How many neurons can be dead at a step, known to the host without waiting for what the device is about to do.

A neuron dies by samples going by, so that those which can be dead a few steps ahead are counted beforehand. Counts are
copied while the device works; the host waits only for steps that lie as far back. Knows nothing of autoencoders.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["DeadForecast"]

_STEPS_AHEAD = 4


class DeadForecast:
    """An upper limit of the dead, step by step: every dead neuron is among that many that fired the longest ago."""

    def __init__(self, dead_after_samples: int) -> None:
        """Begin with neurons that have all just fired.

        Args:
            dead_after_samples: a neuron that has not fired on so many samples in a row is dead.
        """
        self._dead_after = dead_after_samples
        self._seen = 0
        self._counts: deque[_Count] = deque([_Count(dead_after_samples - 1, torch.zeros((), dtype=torch.int64), None)])

    def limit(self) -> int:
        """At least as many as are dead now."""
        # The newest count always reaches further.
        while self._counts[0].reaches < self._seen:
            self._counts.popleft()
        return self._counts[0].read()

    def advance(self, samples_since_fired: Int[Tensor, " neurons"], row_count: int) -> None:
        """Count ahead, after a step.

        Args:
            samples_since_fired: after the step.
            row_count: samples of the step, which the next ones are taken to have too.
        """
        self._look_ahead(samples_since_fired, self._seen + row_count, row_count)
        self._seen += row_count

    def restart(self, samples_since_fired: Int[Tensor, " neurons"], row_count: int) -> None:
        """Forget what was counted; waits for the device.

        Args:
            samples_since_fired: of every neuron.
            row_count: samples of a step.
        """
        self._seen = 0
        self._counts.clear()
        self._look_ahead(samples_since_fired, 0, row_count)

    def _look_ahead(self, samples_since_fired: Tensor, seen: int, row_count: int) -> None:
        ahead = _STEPS_AHEAD * row_count
        if self._counts and self._counts[0].reaches >= seen + ahead:
            return
        count = (samples_since_fired >= self._dead_after - ahead).sum()
        copied = None
        if count.device.type == "cuda":
            # Into pinned memory, which torch takes for a copy that is not waited for.
            count = count.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(samples_since_fired.device))
        self._counts.append(_Count(seen + ahead, count.cpu(), copied))


class _Count(NamedTuple):
    """So many can be dead until so many samples were seen."""

    reaches: int
    dead: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> int:
        if self.copied is not None:
            self.copied.synchronize()
        return int(self.dead.numpy())
