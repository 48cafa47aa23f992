"""EleutherAI's sparsify, as a contestant: its TopK autoencoder, and the step of its trainer on rows that are given.

Its trainer reads activations off a language model by hooks; what it does with a batch of them is done here in the same
order, with the same optimisers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify.config import SparseCoderConfig
from sparsify.sign_sgd import SignSGD
from sparsify.sparse_coder import SparseCoder
from torch import Tensor

from benchmarks.training_load.contestant import Task, compete, learning_rate_share


class Sparsify:
    """Its autoencoder with its defaults."""

    def __init__(self, task: Task, rows: Tensor) -> None:
        """Weights from the seed."""
        torch.manual_seed(task.seed)
        self._task = task
        config = SparseCoderConfig(num_latents=task.neuron_count, k=task.k)
        self._sae = SparseCoder(rows.shape[1], config, "cpu", dtype=torch.float32)

    def train(self, batches: Iterator[Tensor]) -> None:
        """Its trainer's step: the first batch sets the decoder bias, directions keep unit norm."""
        task, sae = self._task, self._sae
        optimiser, schedule = _optimiser(task, sae)
        samples_since_fired = torch.zeros(sae.num_latents, dtype=torch.long)
        for step, batch in enumerate(batches):
            if step == 0:
                sae.b_dec.data = batch.mean(0)
            sae.set_decoder_norm_to_unit_norm()
            total_variance = (batch - batch.mean(0)).pow(2).sum()
            output = sae(x=batch, y=batch, dead_mask=None, total_variance=total_variance)
            did_fire = torch.zeros(sae.num_latents, dtype=torch.bool)
            did_fire[output.latent_indices.flatten()] = True
            output.fvu.backward()
            sae.remove_gradient_parallel_to_decoder_directions()
            optimiser.step()
            optimiser.zero_grad()
            if schedule is not None:
                schedule.step()
            samples_since_fired += len(batch)
            samples_since_fired[did_fire] = 0
        if schedule is None:
            optimiser.eval()

    def weights(self) -> dict[str, Tensor]:
        """See `Contestant.weights`."""
        assert self._sae.W_dec is not None
        return {
            "encoder_weight": self._sae.encoder.weight.T,
            "encoder_bias": self._sae.encoder.bias,
            "directions": self._sae.W_dec,
            "decoder_bias": self._sae.b_dec,
        }


def _optimiser(task: Task, sae: SparseCoder) -> tuple[torch.optim.Optimizer, object | None]:
    # `signum` is its default, with a learning rate of its own; Adam is its other choice.
    if task.optimiser == "adam":
        adam = torch.optim.Adam(sae.parameters(), lr=task.learning_rate)
        return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: learning_rate_share(task, step))
    signum = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / (sae.num_latents / 2**14) ** 0.5), momentum=0.95)
    signum.train()
    return signum, None


if __name__ == "__main__":
    compete(Sparsify)
