"""SAELens, as a contestant: its BatchTopK training SAE in its own `SAETrainer.fit`, without its logging service."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.training_load.contestant import Task, compete, decay_steps, warm_up_steps


class SaeLens:
    """Its autoencoder with its defaults."""

    def __init__(self, task: Task, rows: Tensor) -> None:
        """Weights from the seed."""
        torch.manual_seed(task.seed)
        self._task = task
        self._sae = BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=task.neuron_count, k=task.k, device="cpu")
        )

    def train(self, batches: Iterator[Tensor]) -> None:
        """Its own loop; it asks for no more batches than there are."""
        task = self._task
        config = SAETrainerConfig(
            total_training_samples=task.step_count * task.batch_rows,
            train_batch_size_samples=task.batch_rows,
            lr=task.learning_rate,
            lr_end=task.learning_rate,
            lr_warm_up_steps=warm_up_steps(task),
            lr_decay_steps=decay_steps(task),
            device="cpu",
            logger=LoggingConfig(log_to_wandb=False),
        )
        SAETrainer(config, self._sae, batches).fit()

    def weights(self) -> dict[str, Tensor]:
        """With the norms of its directions folded into the encoder, which is how it selects."""
        norms = self._sae.W_dec.norm(dim=1)
        return {
            "encoder_weight": self._sae.W_enc * norms,
            "encoder_bias": self._sae.b_enc * norms,
            "directions": self._sae.W_dec / norms[:, None],
            "decoder_bias": self._sae.b_dec,
        }


if __name__ == "__main__":
    compete(SaeLens)
