"""Trains one autoencoder in which any number of neurons may be active, ReLU with L1 or JumpReLU, by autograd.

Directions keep unit norm and their gradient loses its part along them, as in Bricken et al., "Towards monosemanticity"
(2023). The losses are in `objectives`; knows nothing of data or files.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phosphene.device_errors import is_out_of_memory
from phosphene.errors import DeviceOutOfMemory
from phosphene.selection import Selection
from training.learner import StepReport, learning_rate_at
from training.objectives import ghost_loss, jump_relu, l1_penalty, reconstruction_loss, squared_errors
from training.ranks import ALONE, Ranks
from training.settings import TrainingSettings
from training.variants import DenseVariant, JumpReluTraining, ReluTraining
from training.weights import Weights


class DenseLearner:
    """Weights, thresholds, optimiser and dead counters, advanced one batch at a time."""

    def __init__(
        self,
        weights: Weights,
        variant: DenseVariant,
        settings: TrainingSettings,
        *,
        device: torch.device,
        ranks: Ranks = ALONE,
        threshold: Float[Tensor, " neurons"] | None = None,
    ) -> None:
        """Start at step zero with a copy of these weights on `device`.

        Args:
            weights: to begin with.
            variant: the rule.
            settings: the optimisation.
            device: where to compute.
            ranks: who else has a part of each batch, equally large; each gives its own part to `step`.
            threshold: where JumpReLU's thresholds start; None is where the variant says.
        """
        self.weights = Weights(
            **{name: value.detach().clone().to(device).requires_grad_() for name, value in weights.tensors().items()}
        )
        self.settings = settings
        self._ranks = ranks
        self.step_count = 0
        self.block_rows = settings.batch_rows
        """Rows that are worked on at once; gradients are added up, so that fewer need less memory for the same step."""
        self._variant = variant
        neuron_count = len(weights.directions)
        if threshold is None:
            threshold = torch.full((neuron_count,), _initial_threshold(variant))
        self._threshold = threshold.detach().clone().to(device).requires_grad_()
        self._learnt = self.weights.tensors()
        if isinstance(variant, JumpReluTraining):
            self._learnt["threshold"] = self._threshold
        self._optimiser = torch.optim.Adam(self._learnt.values(), lr=0.0, fused=True)
        for tensor in self._learnt.values():
            # What torch would make at the first update, which a run of skipped steps may never reach.
            self._optimiser.state[tensor] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }
        self._idle = _Idle(*torch.zeros(2, neuron_count, dtype=torch.int64, device=device).unbind())
        self._dead_count = self._ghost_count = 0

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """Advance by one batch of scaled residuals; a batch that leads to NaN or infinity changes nothing.

        Raises:
            torch.OutOfMemoryError: nothing has changed, and no other rank has been met: the step can be done again.
            DeviceOutOfMemory: it cannot, because the other ranks are further.
        """
        row_count = len(inputs) * self._ranks.count  # Parts are equally large.
        for tensor in self._learnt.values():
            tensor.grad = None
        blocks = [
            self._differentiate(block, share=len(block) / row_count) for block in torch.split(inputs, self.block_rows)
        ]
        whole = _Block(*(torch.stack(parts).sum(dim=0) for parts in zip(*blocks, strict=True)))
        if self._ranks.count == 1:
            return self._advance(whole, row_count)
        try:
            self._add_up(*whole)
            return self._advance(whole, row_count)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceOutOfMemory(
                f"a step does not fit into the memory of the device of process {self._ranks.rank}: use fewer "
                "--neurons, or a larger device"
            ) from error

    def state(self) -> dict[str, Tensor]:
        """See `Learner.state`."""
        tensors = {"samples_since_fired": self._idle.samples, "steps_since_fired": self._idle.steps}
        for name, tensor in self._learnt.items():
            state = self._optimiser.state[tensor]
            tensors |= {name: tensor, f"{name}.mean": state["exp_avg"], f"{name}.square": state["exp_avg_sq"]}
            tensors[f"{name}.updates"] = state["step"]
        return tensors

    def restore(self, step_count: int, state: dict[str, Tensor]) -> None:
        """See `Learner.restore`."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])
        _, self._dead_count, self._ghost_count = self._read(self._idle.samples.new_ones(()), self._idle)
        self.step_count = step_count

    def own_selection(self) -> Selection | None:
        """JumpReLU: with the learnt thresholds, or with zeros for ReLU."""
        match self._variant:
            case ReluTraining() as variant:
                return variant.for_inference(len(self._threshold))
            case JumpReluTraining() as variant:
                return variant.for_inference(self._threshold.detach().cpu().clone())
            case _:
                assert_never(self._variant)

    def _differentiate(self, inputs: Float[Tensor, "rows d"], *, share: float) -> _Block:
        """Add the gradients of some rows, which are this share of the batch, to those of the rows before."""
        forward = self._forward(inputs)
        objective = forward.objective * share
        learnt = list(self._learnt.values())
        for tensor, gradient in zip(learnt, torch.autograd.grad(objective, learnt), strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)
        with torch.no_grad():
            error = reconstruction_loss(inputs, forward.reconstruction) * share
            return _Block(objective.detach(), error, (forward.activations > 0).sum(dim=0))

    def _advance(self, whole: _Block, row_count: int) -> StepReport:
        """Change weights and counters by the gradients that are there, unless they are not finite."""
        norm = self._shape_gradients()
        idle = self._idle.after(whole.fired_counts > 0, row_count)
        is_finite, dead_count, ghost_count = self._read(torch.isfinite(whole.objective) & torch.isfinite(norm), idle)
        report = StepReport(
            whole.error, whole.fired_counts.sum() / row_count, self._dead_count, is_skipped=not is_finite
        )
        if is_finite:
            self._update()
            self._idle, self._dead_count, self._ghost_count = idle, dead_count, ghost_count
        self.step_count += 1
        return report

    def _add_up(self, *totals: Tensor) -> None:
        """Replace gradients and totals by their sums over all ranks."""
        for tensor in self._learnt.values():
            assert tensor.grad is not None
            tensor.grad = tensor.grad.contiguous()
            self._ranks.add_tensors(tensor.grad)
        self._ranks.add_tensors(*totals)

    def _forward(self, inputs: Float[Tensor, "rows d"]) -> _Forward:
        pre_activations = self._encode(inputs)
        match self._variant:
            case ReluTraining() as variant:
                activations = pre_activations.relu()
                reconstruction = self._decode(activations)
                errors = squared_errors(inputs, reconstruction, is_normalised=variant.is_error_normalised)
                objective = errors.mean() + variant.l1_coefficient * l1_penalty(activations)
                if self._ghost_count:
                    objective = objective + self._ghost_loss(inputs, reconstruction, errors)
            case JumpReluTraining() as variant:
                activations, l0 = jump_relu(pre_activations, self._threshold, bandwidth=variant.bandwidth)
                reconstruction = self._decode(activations)
                objective = reconstruction_loss(inputs, reconstruction) + variant.l0_coefficient * l0
            case _:
                assert_never(self._variant)
        return _Forward(activations, reconstruction, objective)

    def _encode(self, inputs: Float[Tensor, "rows d"]) -> Float[Tensor, "rows neurons"]:
        # As `Weights.pre_activations`, to the bit. The zero carries the decoder bias's gradient, summed over the rows
        # before it meets the weights: a sixth of the step's arithmetic less.
        weights = self.weights
        zero = (weights.decoder_bias.detach() - weights.decoder_bias) @ weights.encoder_weight.detach()
        centred = inputs - weights.decoder_bias.detach()
        return torch.addmm(weights.encoder_bias + zero, centred, weights.encoder_weight)

    def _decode(self, activations: Float[Tensor, "rows neurons"]) -> Float[Tensor, "rows d"]:
        return torch.addmm(self.weights.decoder_bias, activations, self.weights.directions)

    def _ghost_loss(
        self, inputs: Float[Tensor, "rows d"], reconstruction: Float[Tensor, "rows d"], errors: Float[Tensor, "rows d"]
    ) -> Float[Tensor, ""]:
        weights = self.weights
        # The longest idle ones, found by sorting: `nonzero` would wait for the device.
        ghosts = self._idle.steps.argsort(descending=True, stable=True)[: self._ghost_count]
        # Encoded anew, so that no gradient reaches the decoder bias.
        centred = inputs - weights.decoder_bias.detach()
        columns = weights.encoder_weight.index_select(1, ghosts)
        pre_activations = torch.addmm(weights.encoder_bias[ghosts], centred, columns)
        return ghost_loss(errors, inputs - reconstruction, pre_activations, weights.directions[ghosts])

    def _shape_gradients(self) -> Float[Tensor, ""]:
        """Take off what would change the directions' norms, and clip; returns the norm before clipping."""
        directions = self.weights.directions
        assert directions.grad is not None
        with torch.no_grad():
            directions.grad -= (directions.grad * directions).sum(dim=1, keepdim=True) * directions
        return torch.nn.utils.clip_grad_norm_(self._learnt.values(), self.settings.gradient_clip)

    def _read(self, is_finite: Tensor, idle: _Idle) -> tuple[bool, int, int]:
        """Whether a step is finite, and how many neurons are dead and get ghost gradients after it: one wait in all."""
        counts = [is_finite, (idle.samples >= self.settings.dead_after_samples).sum()]
        match self._variant:
            case ReluTraining(has_ghost_gradients=True, dead_window_steps=window_steps):
                counts.append((idle.steps >= window_steps).sum())
            case _:
                counts.append(torch.zeros_like(counts[1]))
        flag, dead_count, ghost_count = torch.stack([count.long() for count in counts]).tolist()
        return bool(flag), dead_count, ghost_count

    def _update(self) -> None:
        directions = self.weights.directions
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate_at(self.step_count, self.settings)
        self._optimiser.step()
        with torch.no_grad():
            directions /= directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
            self._threshold.clamp_(min=0)


class _Forward(NamedTuple):
    activations: Float[Tensor, "rows neurons"]
    reconstruction: Float[Tensor, "rows d"]
    objective: Float[Tensor, ""]


class _Block(NamedTuple):
    objective: Float[Tensor, ""]
    error: Float[Tensor, ""]
    fired_counts: Int[Tensor, " neurons"]


class _Idle(NamedTuple):
    """How long each neuron has not fired."""

    samples: Tensor
    steps: Tensor

    def after(self, has_fired: Tensor, row_count: int) -> _Idle:
        """The same, one batch later."""
        samples = torch.where(has_fired, 0, self.samples + row_count)
        return _Idle(samples, torch.where(has_fired, 0, self.steps + 1))


def _initial_threshold(variant: DenseVariant) -> float:
    return variant.initial_threshold if isinstance(variant, JumpReluTraining) else 0.0
