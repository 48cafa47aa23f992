"""A learner that does what a test says: skips steps, selects nothing, runs out of memory, or sums what it is given."""

from __future__ import annotations

from collections.abc import Container

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.selection import Selection, TopK
from training.learner import StepReport
from training.weights import Weights


class ScriptedLearner:
    """Its decoder bias is the sum of all batches' means, so that lost or repeated batches show."""

    def __init__(
        self,
        *,
        skipped_steps: Container[int] = (),
        infinite_steps: Container[int] = (),
        idle_steps: Container[int] = (),
        rows_that_fit: int = 1 << 30,
        block_rows: int = 1 << 30,
    ) -> None:
        self.step_count = 0
        self.block_rows = block_rows
        self.weights = Weights(
            encoder_weight=torch.zeros(4, 8),
            encoder_bias=torch.zeros(8),
            directions=torch.zeros(8, 4),
            decoder_bias=torch.zeros(4),
        )
        self._skipped_steps = skipped_steps
        self._infinite_steps = infinite_steps
        self._idle_steps = idle_steps
        self._rows_that_fit = rows_that_fit

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        if min(len(inputs), self.block_rows) > self._rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        self.step_count += 1
        if self.step_count in self._skipped_steps:
            return StepReport(torch.tensor(torch.nan), torch.tensor(torch.nan), 2, is_skipped=True)
        if self.step_count in self._infinite_steps:
            return StepReport(torch.tensor(torch.inf), torch.tensor(1.0), 2)
        self.weights.decoder_bias.add_(inputs.mean(dim=0))
        least = torch.tensor(torch.inf if self.step_count in self._idle_steps else 1 / self.step_count)
        return StepReport(torch.tensor(0.5), torch.tensor(2.0), 2, least_active=least)

    def state(self) -> dict[str, Tensor]:
        return {"sum": self.weights.decoder_bias}

    def restore(self, step_count: int, state: dict[str, Tensor]) -> None:
        self.step_count = step_count
        self.weights.decoder_bias.copy_(state["sum"])

    def own_selection(self) -> Selection | None:
        return TopK(k=2)


class UndividedLearner(ScriptedLearner):
    """The same, but it cannot work in blocks."""

    def __init__(self, *, rows_that_fit: int) -> None:
        super().__init__(rows_that_fit=rows_that_fit)
        del self.block_rows

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        if len(inputs) > self._rows_that_fit:
            raise torch.OutOfMemoryError
        return super().step(inputs)
