"""Overcomplete, as a contestant: its BatchTopK autoencoder in its own `train_sae`, without its monitoring."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.training_load.contestant import Task, compete, learning_rate_share

# Its package imports the transforms of its vision models; no part of training uses them.
_torchvision = types.ModuleType("torchvision")
_torchvision.transforms = types.ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
sys.modules["torchvision"] = _torchvision

from overcomplete.sae import BatchTopKSAE, train_sae  # noqa: E402


class Overcomplete:
    """Its autoencoder with its defaults; its `top_k` counts over the whole batch."""

    def __init__(self, task: Task, rows: Tensor) -> None:
        """Weights from the seed."""
        torch.manual_seed(task.seed)
        self._task = task
        self._sae = BatchTopKSAE(
            rows.shape[1], nb_concepts=task.neuron_count, top_k=task.k * task.batch_rows, device="cpu"
        )

    def train(self, batches: Iterator[Tensor]) -> None:
        """Its own loop with the criterion and the optimiser of its documentation."""
        task = self._task
        optimiser = torch.optim.Adam(self._sae.parameters(), lr=task.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_share(task, step))
        train_sae(self._sae, batches, _criterion, optimiser, schedule, nb_epochs=1, monitoring=0, device="cpu")

    def weights(self) -> dict[str, Tensor]:
        """It has no decoder bias."""
        linear = self._sae.encoder.final_block[0]
        directions = self._sae.get_dictionary()
        return {
            "encoder_weight": linear.weight.T,
            "encoder_bias": linear.bias,
            "directions": directions,
            "decoder_bias": torch.zeros(directions.shape[1]),
        }


def _criterion(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    return (x - x_hat).square().mean()


if __name__ == "__main__":
    compete(Overcomplete)
