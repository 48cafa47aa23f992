"""The optimisation of an autoencoder on scaled residuals: Adam, unit-norm directions, a dead counter, checkpoints.

What a step computes follows from (settings, step, data) alone, so that a run killed anywhere and resumed ends in the
same bits on one machine with one thread count. Knows nothing of encoders or bundles. Directions keep unit norm and
their gradient loses its part along them, as in Bricken et al., "Towards monosemanticity" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.errors import NumericError
from training.activations import Activations
from training.checkpoint import Checkpoint, CheckpointFolder
from training.objectives import auxiliary_loss, auxiliary_width, reconstruction_loss
from training.progress import Progress
from training.scaling import Scaling
from training.settings import SaeSettings, TrainingSettings
from training.variants import choose_active, decode_active, make_variant, strongest
from training.weights import Weights, initial_weights

_SAMPLE_LIMIT_ROWS = 16_384
_REPORT_EVERY_STEPS = 20


def train(
    activations: Activations,
    scaling: Scaling,
    sae: SaeSettings,
    settings: TrainingSettings,
    *,
    checkpoints: CheckpointFolder,
    device: torch.device,
    progress: Progress,
) -> Weights:
    """Train to the last step, from the newest checkpoint where there is one.

    Args:
        activations: the data.
        scaling: how the data are centred and scaled.
        sae: size and rule.
        settings: the optimisation.
        checkpoints: where to save and resume.
        device: where to compute.
        progress: where to report.

    Returns:
        The final weights on the CPU, in units of the scaled residual.

    Raises:
        NumericError: the loss is no longer finite.
    """
    trainer = Trainer(start(activations, scaling, sae, settings), sae, settings, device=device)
    checkpoint = checkpoints.load_newest()
    if checkpoint is not None:
        trainer.restore(checkpoint)
        progress.event("resumed", step=checkpoint.step)
    scaling = scaling.to(device)
    batches = activations.batches(settings.batch_rows, first_step=trainer.step_count)
    with progress.stage("train", settings.step_count, "steps") as advance:
        advance(trainer.step_count, "")
        for report in _steps(trainer, batches, scaling, device):
            if trainer.step_count % _REPORT_EVERY_STEPS == 0 or trainer.step_count == settings.step_count:
                advance(trainer.step_count, _status(report, trainer.step_count))
            if trainer.step_count % checkpoints.every_steps == 0:
                checkpoints.save(trainer.checkpoint())
    return Weights(**{name: tensor.detach().cpu() for name, tensor in trainer.weights.tensors().items()})


def start(activations: Activations, scaling: Scaling, sae: SaeSettings, settings: TrainingSettings) -> Weights:
    """The weights at step zero, from a sample of the training rows."""
    sample = scaling.apply(activations.sample(_SAMPLE_LIMIT_ROWS))
    return initial_weights(sample, sae, bias_init=settings.bias_init, seed=settings.seed)


class StepReport(NamedTuple):
    """What one step saw; tensors, so that reading them is the caller's choice (it waits for the device)."""

    loss: Float[Tensor, ""]
    """Reconstruction loss."""
    dead_count: int
    """Neurons that were dead before the step."""


class Trainer:
    """Weights, optimiser and dead counter, advanced one batch at a time."""

    def __init__(self, weights: Weights, sae: SaeSettings, settings: TrainingSettings, *, device: torch.device) -> None:
        """Start at step zero with a copy of these weights on `device`."""
        self.weights = Weights(
            **{name: value.detach().clone().to(device).requires_grad_() for name, value in weights.tensors().items()}
        )
        self.settings = settings
        self.step_count = 0
        self._variant = make_variant(sae.variant, sae.k)
        self._optimiser = torch.optim.Adam(self.weights.tensors().values(), lr=0.0, fused=True)
        self._samples_since_fired = torch.zeros(sae.neuron_count, dtype=torch.int64, device=device)

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """Advance by one batch of scaled residuals."""
        weights, settings = self.weights, self.settings
        dead = self._samples_since_fired >= settings.dead_after_samples
        pre_activations = weights.pre_activations(inputs)
        active = choose_active(self._variant, pre_activations)
        reconstruction = decode_active(active, weights.directions) + weights.decoder_bias
        loss = reconstruction_loss(inputs, reconstruction)
        dead_count = int(dead.sum())
        total = loss
        if dead_count:
            auxiliary = self._auxiliary(pre_activations, dead, dead_count, inputs - reconstruction)
            total = loss + settings.auxiliary_coefficient * auxiliary
        self._differentiate(total)
        self._update()
        self._samples_since_fired += len(inputs)
        self._samples_since_fired[active.neuron_ids[active.values.detach() > 0]] = 0
        self.step_count += 1
        return StepReport(loss.detach(), dead_count)

    def checkpoint(self) -> Checkpoint:
        """Everything the next step depends on."""
        tensors = {"samples_since_fired": self._samples_since_fired}
        for name, tensor in self.weights.tensors().items():
            state = self._optimiser.state[tensor]
            tensors |= {name: tensor, f"{name}.mean": state["exp_avg"], f"{name}.square": state["exp_avg_sq"]}
        return Checkpoint(step=self.step_count, tensors=tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same plan."""
        device = self._samples_since_fired.device
        stored = {name: tensor.to(device) for name, tensor in checkpoint.tensors.items()}
        self._samples_since_fired = stored["samples_since_fired"]
        for name, tensor in self.weights.tensors().items():
            with torch.no_grad():
                tensor.copy_(stored[name])
            self._optimiser.state[tensor] = {
                "step": torch.tensor(float(checkpoint.step), device=device),
                "exp_avg": stored[f"{name}.mean"],
                "exp_avg_sq": stored[f"{name}.square"],
            }
        self.step_count = checkpoint.step

    def _differentiate(self, total: Float[Tensor, ""]) -> None:
        tensors = list(self.weights.tensors().values())
        for tensor, gradient in zip(tensors, torch.autograd.grad(total, tensors), strict=True):
            tensor.grad = gradient

    def _auxiliary(
        self,
        pre_activations: Float[Tensor, "rows neurons"],
        dead: Tensor,
        dead_count: int,
        residual: Float[Tensor, "rows d"],
    ) -> Float[Tensor, ""]:
        dead_ids = dead.nonzero().squeeze(1)
        width = auxiliary_width(dead_count, residual.shape[1])
        active = strongest(pre_activations[:, dead_ids], width)
        active = active._replace(neuron_ids=dead_ids[active.neuron_ids])
        return auxiliary_loss(residual, decode_active(active, self.weights.directions))

    def _update(self) -> None:
        directions = self.weights.directions
        assert directions.grad is not None
        with torch.no_grad():
            directions.grad -= (directions.grad * directions).sum(dim=1, keepdim=True) * directions
            torch.nn.utils.clip_grad_norm_(self.weights.tensors().values(), self.settings.gradient_clip)
            for group in self._optimiser.param_groups:
                group["lr"] = learning_rate_at(self.step_count, self.settings)
            self._optimiser.step()
            directions /= directions.norm(dim=1, keepdim=True).clamp_min(1e-12)


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, a plateau, linear decay to zero.

    Args:
        step: steps done so far.
        settings: peak and shares.
    """
    warmup = max(1, math.ceil(settings.step_count * settings.warmup_share))
    decay = max(1, math.ceil(settings.step_count * settings.decay_share))
    rising = (step + 1) / warmup
    falling = (settings.step_count - step) / decay
    return settings.learning_rate * min(1.0, rising, falling)


def _steps(
    trainer: Trainer, batches: Iterator[Float[Tensor, "rows d"]], scaling: Scaling, device: torch.device
) -> Iterator[StepReport]:
    while trainer.step_count < trainer.settings.step_count:
        yield trainer.step(scaling.apply(next(batches).to(device)))


def _status(report: StepReport, step: int) -> str:
    loss = float(report.loss)
    if not math.isfinite(loss):
        raise NumericError(f"training diverged: the loss at step {step} is {loss}; lower --lr")
    return f"loss {loss:.4f}, dead {report.dead_count}"
