"""The one product that no encoder avoids: [batch, d] x [d, neurons] in float32, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.training_load.contestant import Task, compete


class Gemm:
    """Weights, and room for the result."""

    def __init__(self, task: Task, rows: Tensor) -> None:
        """Random weights."""
        generator = torch.Generator().manual_seed(task.seed)
        self._weight = torch.randn(rows.shape[1], task.neuron_count, generator=generator)
        self._result = torch.empty(task.batch_rows, task.neuron_count)

    def train(self, batches: Iterator[Tensor]) -> None:
        """One product for each batch."""
        for batch in batches:
            torch.mm(batch, self._weight, out=self._result)

    def weights(self) -> dict[str, Tensor]:
        """Nothing is trained."""
        return {}


if __name__ == "__main__":
    compete(Gemm)
