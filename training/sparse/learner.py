"""Trains one autoencoder of the top-k family on the CPU; see `training.learner`. Knows nothing of data or files.

TopK: Gao et al. (2024). BatchTopK: Bussmann et al. (2024). Matryoshka: Bussmann et al. (2025). Directions keep unit
norm and their gradient loses its part along them, as in Bricken et al., "Towards monosemanticity" (2023); dead neurons
learn from the residual by the auxiliary loss of Gao et al. In plain torch: `training.sparse.torch_learner`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.selection import Selection
from training.learner import StepReport, learning_rate_at
from training.ranks import ALONE, Ranks
from training.settings import TrainingSettings
from training.sparse.adam import Adam
from training.sparse.gradients import Matrices, SparseGradients
from training.sparse.selection import Selector
from training.sparse.threads import Threads
from training.variants import MatryoshkaTraining, SelectionPrecision, SparseVariant, TopKTraining
from training.weights import Weights

__all__ = ["CpuSparseLearner"]


class CpuSparseLearner:
    """Weights, moments and dead counter, advanced one batch at a time."""

    def __init__(
        self,
        weights: Weights,
        variant: SparseVariant,
        settings: TrainingSettings,
        *,
        thread_count: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Start at step zero with a copy of these weights.

        Args:
            weights: on the CPU.
            variant: the rule.
            settings: the optimisation.
            thread_count: threads of the kernels; results do not depend on it.
            ranks: who else has a part of each batch; each gives its own part to `step`.
        """
        self.settings = settings
        self.step_count = 0
        self._variant = variant
        self._ranks = ranks
        self._matrices = Matrices(
            encoder_rows=_copy(weights.encoder_weight.T),
            encoder_bias=_copy(weights.encoder_bias),
            directions=_copy(weights.directions),
            decoder_bias=_copy(weights.decoder_bias),
        )
        self.weights = Weights(
            encoder_weight=torch.from_numpy(self._matrices.encoder_rows).T,
            encoder_bias=torch.from_numpy(self._matrices.encoder_bias),
            directions=torch.from_numpy(self._matrices.directions),
            decoder_bias=torch.from_numpy(self._matrices.decoder_bias),
        )
        neuron_count = len(self._matrices.directions)
        self._threads = threads = Threads(thread_count)
        self._selector = Selector(
            variant.k,
            is_over_batch=not isinstance(variant, TopKTraining),
            threads=threads,
            in_bfloat16=variant.precision is SelectionPrecision.BFLOAT16,
            ranks=ranks,
        )
        self._core = SparseGradients(
            self._matrices,
            self._selector,
            sizes=variant.prefixes if isinstance(variant, MatryoshkaTraining) else (neuron_count,),
            threads=threads,
            ranks=ranks,
        )
        self._adam = Adam(self._matrices, threads=threads)
        self._update_count = 0
        self._samples_since_fired = np.zeros(neuron_count, np.int64)

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """See `Learner.step`."""
        settings = self.settings
        dead_ids = np.flatnonzero(self._samples_since_fired >= settings.dead_after_samples).astype(np.int32)
        with self._threads.alone():
            done = self._core.compute(
                inputs.contiguous(), dead_ids, auxiliary_coefficient=settings.auxiliary_coefficient
            )
        row_count = int(self._ranks.total(float(len(inputs))))
        learning_rate = learning_rate_at(self.step_count, settings)
        self.step_count += 1
        is_sound = math.isfinite(done.loss) and math.isfinite(done.norm)
        if is_sound:
            self._update_count += 1
            self._adam.step(
                self._core.gradients,
                step_count=self._update_count,
                learning_rate=learning_rate,
                factor=min(1.0, settings.gradient_clip / (done.norm + 1e-6)),
            )
            fired = np.zeros(len(self._samples_since_fired), np.int32)
            fired[done.active.neuron_ids] = 1
            self._ranks.add(fired)
            self._samples_since_fired += row_count
            self._samples_since_fired[fired > 0] = 0
        l0 = self._ranks.total(float(len(done.active.values))) / row_count
        least = None
        if not isinstance(self._variant, TopKTraining):
            least = torch.tensor(self._ranks.least(float(done.active.values.min(initial=np.inf))))
        return StepReport(torch.tensor(done.loss), torch.tensor(l0), len(dead_ids), not is_sound, least)

    def state(self) -> dict[str, Tensor]:
        """See `Learner.state`."""
        tensors = {
            "samples_since_fired": torch.from_numpy(self._samples_since_fired),
            "update_count": torch.tensor(self._update_count),
        }
        if self._variant.precision is SelectionPrecision.BFLOAT16:
            tensors["selection_start"] = self._selector.start
        for name, weight, mean, square in self._arrays():
            tensors |= {name: weight, f"{name}.mean": mean, f"{name}.square": square}
        return tensors

    def restore(self, step_count: int, state: dict[str, Tensor]) -> None:
        """See `Learner.restore`."""
        self._samples_since_fired[:] = state["samples_since_fired"].numpy()
        self._update_count = int(state["update_count"])
        if "selection_start" in state:  # Older checkpoints have none, nor have those of plain torch.
            self._selector.start = state["selection_start"]
        for name, weight, mean, square in self._arrays():
            weight.copy_(state[name])
            mean.copy_(state[f"{name}.mean"])
            square.copy_(state[f"{name}.square"])
        self.step_count = step_count

    def own_selection(self) -> Selection | None:
        """TopK's own rule; the others need a threshold."""
        return self._variant.for_inference() if isinstance(self._variant, TopKTraining) else None

    def _arrays(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Weights and their moments, by name."""
        for field in fields(Matrices):
            parts = (getattr(part, field.name) for part in (self._matrices, self._adam.means, self._adam.squares))
            weight, mean, square = map(torch.from_numpy, parts)
            yield field.name, weight, mean, square


def _copy(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().numpy(), dtype=np.float32, order="C")
