"""Trains one autoencoder of the top-k family in plain torch, on any device; see `training.learner`.

The reference that the kernels of `training.sparse.learner` must equal, and what runs where there is no CPU kernel. Its
decoder works on the active neurons alone; pre-activations and their gradient are dense. Sources: as there.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.selection import Selection
from training.active import Active, choose_active, decode_active, strongest
from training.learner import StepReport, learning_rate_at
from training.objectives import auxiliary_loss, auxiliary_width, reconstruction_loss
from training.ranks import ALONE, Ranks
from training.settings import TrainingSettings
from training.variants import MatryoshkaTraining, SparseVariant, TopKTraining
from training.weights import Weights

__all__ = ["TorchSparseLearner"]


class TorchSparseLearner:
    """Weights, optimiser and dead counter, advanced one batch at a time."""

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
        self._ranks = ranks
        self.step_count = 0
        self._variant = variant
        self._parameters = {
            name: tensor.detach().to(device, torch.float32, copy=True).contiguous().requires_grad_()
            for name, tensor in (
                ("encoder_rows", weights.encoder_weight.T),
                ("encoder_bias", weights.encoder_bias),
                ("directions", weights.directions),
                ("decoder_bias", weights.decoder_bias),
            )
        }
        self._optimiser = torch.optim.Adam(self._parameters.values(), lr=0.0, fused=True)
        self._update_count = 0
        self._samples_since_fired = torch.zeros(len(weights.directions), dtype=torch.int64, device=device)

    @property
    def weights(self) -> Weights:
        """See `Learner.weights`."""
        detached = {name: tensor.detach() for name, tensor in self._parameters.items()}
        return Weights(encoder_weight=detached.pop("encoder_rows").T, **detached)

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """See `Learner.step`."""
        parameters, settings = self._parameters, self.settings
        centred = inputs - parameters["decoder_bias"]
        pre_activations = torch.addmm(parameters["encoder_bias"], centred, parameters["encoder_rows"].T)
        active = choose_active(self._variant, pre_activations, self._ranks)
        loss, objective = self._losses(inputs, active)
        dead_ids = (self._samples_since_fired >= settings.dead_after_samples).nonzero().squeeze(1)
        if len(dead_ids):
            residual = inputs - self._decode(active)
            objective = objective + settings.auxiliary_coefficient * self._auxiliary(centred, dead_ids, residual)
        # Parts are equally large: the mean over the batch is the mean over their means.
        is_sound = self._update(objective / self._ranks.count)
        is_active = active.values.detach() > 0
        fired = torch.zeros_like(self._samples_since_fired)
        fired[active.neuron_ids[is_active]] = 1
        means = torch.stack([loss.detach(), is_active.sum() / len(inputs)]) / self._ranks.count
        self._ranks.add_tensors(fired, means)
        if is_sound:
            self._samples_since_fired += len(inputs) * self._ranks.count
            self._samples_since_fired[fired > 0] = 0
        self.step_count += 1
        return StepReport(means[0], means[1], len(dead_ids), is_skipped=not is_sound)

    def state(self) -> dict[str, Tensor]:
        """See `Learner.state`."""
        tensors = {
            "samples_since_fired": self._samples_since_fired,
            "update_count": torch.tensor(self._update_count),
        }
        for name, tensor in self._parameters.items():
            moments = self._optimiser.state[tensor]
            zeros = torch.zeros_like(tensor, requires_grad=False)
            tensors[name] = tensor
            tensors[f"{name}.mean"] = moments.get("exp_avg", zeros)
            tensors[f"{name}.square"] = moments.get("exp_avg_sq", zeros)
        return tensors

    def restore(self, step_count: int, state: dict[str, Tensor]) -> None:
        """See `Learner.restore`."""
        device = self._samples_since_fired.device
        # Copied: Adam works in place.
        stored = {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}
        self._samples_since_fired = stored["samples_since_fired"]
        self._update_count = int(stored["update_count"])
        for name, tensor in self._parameters.items():
            with torch.no_grad():
                tensor.copy_(stored[name])
            self._optimiser.state[tensor] = {
                "step": torch.tensor(float(self._update_count), device=device),
                "exp_avg": stored[f"{name}.mean"],
                "exp_avg_sq": stored[f"{name}.square"],
            }
        self.step_count = step_count

    def own_selection(self) -> Selection | None:
        """TopK's own rule; the others need a threshold."""
        return self._variant.for_inference() if isinstance(self._variant, TopKTraining) else None

    def _decode(self, active: Active) -> Float[Tensor, "rows d"]:
        return decode_active(active, self._parameters["directions"]) + self._parameters["decoder_bias"]

    def _losses(self, inputs: Float[Tensor, "rows d"], active: Active) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss of the whole autoencoder, and what is minimised: Matryoshka's is the mean over its prefixes."""
        whole = reconstruction_loss(inputs, self._decode(active))
        if not isinstance(self._variant, MatryoshkaTraining):
            return whole, whole
        nested = [
            reconstruction_loss(
                inputs, self._decode(active._replace(values=torch.where(active.neuron_ids < size, active.values, 0)))
            )
            for size in self._variant.prefixes[:-1]
        ]
        return whole, torch.stack([*nested, whole]).mean()

    def _auxiliary(
        self, centred: Float[Tensor, "rows d"], dead_ids: Tensor, residual: Float[Tensor, "rows d"]
    ) -> Float[Tensor, ""]:
        """Only the dead neurons learn from it."""
        parameters = self._parameters
        rows, biases = parameters["encoder_rows"][dead_ids], parameters["encoder_bias"][dead_ids]
        pre_activations = torch.addmm(biases, centred.detach(), rows.T)
        active = strongest(pre_activations, auxiliary_width(len(dead_ids), residual.shape[1]))
        return auxiliary_loss(residual, decode_active(active, parameters["directions"][dead_ids]), self._ranks)

    def _update(self, objective: Float[Tensor, ""]) -> bool:
        """Change the weights, unless the step would lead to NaN or infinity."""
        tensors = list(self._parameters.values())
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(objective, tensors)]
        self._ranks.add_tensors(*gradients)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        directions = self._parameters["directions"]
        assert directions.grad is not None
        with torch.no_grad():
            directions.grad -= (directions.grad * directions).sum(dim=1, keepdim=True) * directions
            norm = torch.nn.utils.clip_grad_norm_(tensors, self.settings.gradient_clip)
            if not math.isfinite(float(norm)):
                return False
            for group in self._optimiser.param_groups:
                group["lr"] = learning_rate_at(self.step_count, self.settings)
            self._optimiser.step()
            self._update_count += 1
            directions /= directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return True
