"""Trains one autoencoder of the top-k family in torch, on any device; see `training.learner`.

What runs where there is no CPU kernel, and what the kernels of `training.sparse.learner` must equal. The host never
waits for the step it asks for: what a step found is read by whoever reads its report. Sources: as there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim.adam import adam

from phosphene.device_errors import is_out_of_memory
from phosphene.errors import DeviceOutOfMemory
from phosphene.selection import Selection
from training.learner import StepReport, learning_rate_at
from training.ranks import ALONE, Ranks
from training.settings import TrainingSettings
from training.sparse.dead_forecast import DeadForecast
from training.sparse.torch_gradients import Batch, Parameters, TorchPass, TorchSparseGradients
from training.sparse.torch_sums import sums_for
from training.variants import SparseVariant, TopKTraining
from training.weights import Weights

__all__ = ["TorchSparseLearner"]


class TorchSparseLearner:
    """Weights, moments and dead counter, advanced one batch at a time."""

    def __init__(
        self,
        weights: Weights,
        variant: SparseVariant,
        settings: TrainingSettings,
        *,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """Start at step zero with a copy of these weights.

        Args:
            weights: to begin with.
            variant: the rule.
            settings: the optimisation.
            device: where to compute.
            ranks: who else has a part of each batch, equally large; each gives its own part to `step`.
        """
        self.settings = settings
        self.step_count = 0
        self.block_rows = settings.batch_rows
        """Rows whose pre-activations exist at once; of a whole batch there are only a few numbers per coordinate."""
        self._ranks = ranks
        self._variant = variant
        self._parameters = Parameters(
            *(
                tensor.detach().to(device, torch.float32, copy=True).contiguous()
                for tensor in (
                    weights.encoder_weight.T,
                    weights.encoder_bias,
                    weights.directions,
                    weights.decoder_bias,
                )
            )
        )
        self._means = [torch.zeros_like(tensor) for tensor in self._parameters]
        self._squares = [torch.zeros_like(tensor) for tensor in self._parameters]
        # Adam counts for every tensor; what a step needs while it changes them is here beforehand.
        self._update_counts = list(torch.zeros(len(self._parameters), device=device).unbind())
        self._norms = torch.empty(len(weights.directions), 1, device=device)
        self._gradients = TorchSparseGradients(
            self._parameters,
            variant,
            sums_for(device),
            auxiliary_coefficient=settings.auxiliary_coefficient,
            ranks=ranks,
        )
        self._samples_since_fired = torch.zeros(len(weights.directions), dtype=torch.int64, device=device)
        self._forecast = DeadForecast(settings.dead_after_samples)

    @property
    def weights(self) -> Weights:
        """See `Learner.weights`."""
        named = self._parameters._asdict()
        return Weights(encoder_weight=named.pop("encoder_rows").T, **named)

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """See `Learner.step`.

        Raises:
            torch.OutOfMemoryError: nothing has changed.
            DeviceOutOfMemory: the same, in one of several processes, which cannot do a step again by itself.
        """
        try:
            return self._step(inputs)
        except RuntimeError as error:
            if self._ranks.count == 1 or not is_out_of_memory(error):
                raise
            raise DeviceOutOfMemory(
                f"a step over {len(inputs)} rows does not fit into the memory of the device of process "
                f"{self._ranks.rank}: use a smaller --batch, fewer --neurons, or more processes"
            ) from error

    def state(self) -> dict[str, Tensor]:
        """See `Learner.state`."""
        tensors = {
            "samples_since_fired": self._samples_since_fired,
            "update_count": self._update_counts[0].long(),
        }
        named = self._parameters._asdict().items()
        for (name, tensor), mean, square in zip(named, self._means, self._squares, strict=True):
            tensors |= {name: tensor, f"{name}.mean": mean, f"{name}.square": square}
        return tensors

    def restore(self, step_count: int, state: dict[str, Tensor]) -> None:
        """See `Learner.restore`."""
        live = self.state()
        del live["update_count"]
        for name, tensor in live.items():
            tensor.copy_(state[name])
        for count in self._update_counts:
            count.copy_(state["update_count"])
        self._forecast.restart(self._samples_since_fired, self.settings.batch_rows)
        self.step_count = step_count

    def own_selection(self) -> Selection | None:
        """TopK's own rule; the others need a threshold."""
        return self._variant.for_inference() if isinstance(self._variant, TopKTraining) else None

    def _step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """Compute everything, then change weights and counters without asking for more memory."""
        batch = self._batch(inputs)
        done = self._gradients.compute(batch, block_rows=self.block_rows)
        update = self._plan_update(done)
        row_count = len(inputs) * self._ranks.count
        silent = torch.where(done.fired > 0, 0, self._samples_since_fired + row_count)
        silent = torch.where(update.is_skipped, self._samples_since_fired, silent)
        least_active = None if isinstance(self._variant, TopKTraining) else done.least_active
        report = StepReport(done.loss, done.l0, batch.is_dead.sum(), update.is_skipped, least_active)
        self._forecast.advance(silent, row_count)
        self._update(done.gradients, update)
        self._samples_since_fired = silent
        self.step_count += 1
        return report

    def _batch(self, inputs: Float[Tensor, "rows d"]) -> Batch:
        is_dead = self._samples_since_fired >= self.settings.dead_after_samples
        limit = self._forecast.limit() if self.settings.auxiliary_coefficient else 0
        if not limit:
            return Batch(inputs, is_dead, None)
        # Powers of two: sizes that differ from step to step would scatter the device's memory.
        count = min(1 << (limit - 1).bit_length(), len(is_dead))
        candidates = self._samples_since_fired.topk(count, sorted=False).indices.sort().values
        return Batch(inputs, is_dead, candidates)

    def _plan_update(self, done: TorchPass) -> _Update:
        """Take off what would change the directions' norms, and see whether the step is sound and how far to clip."""
        gradient, directions = done.gradients.directions, self._parameters.directions
        along = (gradient * directions).sum(dim=1, keepdim=True)
        gradient.addcmul_(along, directions, value=-1)
        norm = torch.nn.utils.get_total_norm(done.gradients)
        is_skipped = ~(torch.isfinite(norm) & torch.isfinite(done.loss))
        divisor = ((norm + 1e-6) / self.settings.gradient_clip).clamp_min(1)
        return _Update(is_skipped, is_skipped.float(), divisor)

    def _update(self, gradients: Parameters, update: _Update) -> None:
        """One step of Adam, in place; a skipped step leaves every bit as it is."""
        adam(
            list(self._parameters),
            list(gradients),
            self._means,
            self._squares,
            [],
            self._update_counts,
            fused=True,
            grad_scale=update.divisor,
            found_inf=update.is_skipped_as_float,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate_at(self.step_count, self.settings),
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        directions = self._parameters.directions
        torch.linalg.vector_norm(directions, dim=1, keepdim=True, out=self._norms)
        directions /= self._norms.clamp_min_(1e-12).masked_fill_(update.is_skipped, 1)


class _Update(NamedTuple):
    is_skipped: Bool[Tensor, ""]
    is_skipped_as_float: Float[Tensor, ""]
    divisor: Float[Tensor, ""]
