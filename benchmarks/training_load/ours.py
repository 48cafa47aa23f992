"""Phosphene, as a contestant: the learner of its training loop, a step for each batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.training_load.contestant import Task, compete
from training.requests import SaeRequest, TrainingRequest
from training.settings import InputScaling
from training.trainer import make_learner
from training.variants import SelectionPrecision, VariantName
from training.weights import initial_weights

_SAMPLE_ROWS = 16_384


class Ours:
    """A learner at step zero."""

    def __init__(self, task: Task, rows: Tensor) -> None:
        """As `training.trainer.train` makes it; the rows are scaled already."""
        request = SaeRequest(
            k=task.k,
            neuron_count=task.neuron_count,
            variant=VariantName(task.variant),
            inputs=InputScaling.RAW,
            selection_precision=SelectionPrecision(task.precision),
        )
        sae = request.resolve(rows.shape[1])
        settings = TrainingRequest(
            step_count=task.step_count,
            batch_rows=task.batch_rows,
            learning_rate=task.learning_rate,
            seed=task.seed,
        ).resolve(len(rows), sae, width=rows.shape[1])
        if task.dead_after_samples:
            settings = dataclasses.replace(settings, dead_after_samples=task.dead_after_samples)
        weights = initial_weights(rows[:_SAMPLE_ROWS], sae, bias_init=settings.bias_init, seed=settings.seed)
        self._learner = make_learner(weights, sae, settings, device=torch.device("cpu"))

    def train(self, batches: Iterator[Tensor]) -> None:
        """See `Contestant.train`."""
        for batch in batches:
            self._learner.step(batch)

    def weights(self) -> dict[str, Tensor]:
        """See `Contestant.weights`."""
        return self._learner.weights.tensors()


if __name__ == "__main__":
    compete(Ours)
