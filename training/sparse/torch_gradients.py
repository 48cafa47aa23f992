"""Loss and gradients of a top-k autoencoder from its active neurons alone, in torch on any device.

What `training.sparse.gradients` does for the CPU. Pre-activations exist for a block of rows at a time, and their
gradient not at all; where a variant selects in bfloat16, what it selects is computed again in float32. Nothing here
waits for the device. Knows nothing of optimisers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.active import Choice, Chosen
from training.objectives import auxiliary_loss, auxiliary_width
from training.ranks import ALONE, Ranks
from training.sparse.slots import Layout, Slots
from training.sparse.torch_sums import Sums
from training.variants import MatryoshkaTraining, SelectionPrecision, SparseVariant

__all__ = ["Batch", "Parameters", "TorchPass", "TorchSparseGradients"]


class Parameters(NamedTuple):
    """The weights, or their gradients, by neuron; float32 and contiguous."""

    encoder_rows: Float[Tensor, "neurons d"]
    """W_enc transposed."""
    encoder_bias: Float[Tensor, " neurons"]
    """b_enc."""
    directions: Float[Tensor, "neurons d"]
    """W_dec."""
    decoder_bias: Float[Tensor, " d"]
    """b_dec."""


class Batch(NamedTuple):
    """What a step works on."""

    inputs: Float[Tensor, "rows d"]
    """Scaled residuals."""
    is_dead: Bool[Tensor, " neurons"]
    """Neurons that learn from what is left unexplained."""
    dead_candidates: Int[Tensor, " candidates"] | None
    """Neurons, rising, among which all the dead are; None where none is dead."""


class TorchPass(NamedTuple):
    """What one batch gave, over all parts of it."""

    loss: Float[Tensor, ""]
    """Mean squared error per coordinate of the whole autoencoder."""
    l0: Float[Tensor, ""]
    """Mean number of active neurons per row."""
    fired: Int[Tensor, " neurons"]
    """How often each neuron was active."""
    least_active: Float[Tensor, ""]
    """Smallest activation; infinity where there is none."""
    gradients: Parameters
    """Of every weight."""


class TorchSparseGradients:
    """Computes the gradients of one autoencoder, batch after batch."""

    def __init__(
        self,
        parameters: Parameters,
        variant: SparseVariant,
        sums: Sums,
        *,
        auxiliary_coefficient: float,
        ranks: Ranks = ALONE,
    ) -> None:
        """Differentiate these weights, which change in place.

        Args:
            parameters: the autoencoder.
            variant: the rule.
            sums: what adds up active neurons.
            auxiliary_coefficient: weight of the loss of dead neurons.
            ranks: who else has a part of each batch, equally large.
        """
        self._parameters = parameters
        self._variant = variant
        self._sums = sums
        self._auxiliary_coefficient = auxiliary_coefficient
        self._selects_in_bfloat16 = variant.precision is SelectionPrecision.BFLOAT16
        self._ranks = ranks
        self._neuron_count = len(parameters.directions)
        sizes = variant.prefixes if isinstance(variant, MatryoshkaTraining) else (self._neuron_count,)
        self._sizes = torch.tensor(sizes, device=parameters.directions.device)

    def compute(self, batch: Batch, *, block_rows: int) -> TorchPass:
        """The gradients of one batch.

        Args:
            batch: this process's part.
            block_rows: rows whose pre-activations exist at a time.
        """
        inputs, parameters = batch.inputs, self._parameters
        centred = inputs - parameters.decoder_bias
        active, dead = self._select(centred, batch, block_rows)
        slots_at_once = block_rows * self._variant.k
        if self._selects_in_bfloat16:
            active = self._in_float32(centred, active, slots_at_once)
            dead = None if dead is None else self._in_float32(centred, dead, slots_at_once)
        layout = Layout(row_count=len(inputs), neuron_count=self._neuron_count, sizes=self._sizes)
        slots, bags = layout.slots(active, dead)
        decoded = self._sums.weighted(parameters.directions, slots.neuron_ids, slots.values, *bags)
        errors, loss = self._errors(inputs, decoded, layout)
        slopes = self._sums.dots(
            errors, slots.bags, parameters.directions, slots.neuron_ids, is_wanted=slots.is_active,
            slots_at_once=slots_at_once,
        )  # fmt: skip
        gradients = self._add_up(slots, slopes, errors, centred, layout)
        is_own = slots.is_active & (slots.bags < layout.main_count)
        fired = torch.zeros_like(batch.is_dead, dtype=torch.int32).index_add_(0, slots.neuron_ids, is_own.int())
        means = torch.stack([loss, is_own.sum() / len(inputs)]) / self._ranks.count
        self._ranks.add_tensors(fired, means, *gradients)
        least = self._ranks.gather_tensor(torch.where(is_own, slots.values, torch.inf).amin(dim=0, keepdim=True)).amin()
        return TorchPass(loss=means[0], l0=means[1], fired=fired, least_active=least, gradients=gradients)

    def _select(self, centred: Float[Tensor, "rows d"], batch: Batch, block_rows: int) -> tuple[Chosen, Chosen | None]:
        """What is active, over the whole batch, and the strongest dead neurons of each row."""
        dtype = torch.bfloat16 if self._selects_in_bfloat16 else torch.float32
        rows, bias = self._parameters.encoder_rows.to(dtype).T, self._parameters.encoder_bias.to(dtype)
        choice = Choice(self._variant, len(centred), self._neuron_count, self._ranks)
        dead: list[Chosen] = []
        for index, block in enumerate(torch.split(centred, block_rows)):
            pre_activations = torch.addmm(bias, block.to(dtype), rows)
            choice.add(pre_activations)
            if batch.dead_candidates is not None:
                dead.append(
                    self._strongest_dead(pre_activations, index * block_rows, batch.is_dead, batch.dead_candidates)
                )
        strongest = Chosen(*(torch.cat(parts) for parts in zip(*dead, strict=True))) if dead else None
        return choice.chosen(), strongest

    def _strongest_dead(
        self, pre_activations: Float[Tensor, "block neurons"], first_row: int, is_dead: Tensor, candidates: Tensor
    ) -> Chosen:
        """Candidates that live are hidden, so that as many neurons are left to choose among as are dead."""
        hidden = pre_activations.index_select(1, candidates).masked_fill_(~is_dead[candidates], -torch.inf)
        width = auxiliary_width(len(candidates), self._parameters.directions.shape[1])
        values, columns = hidden.topk(width, dim=1, sorted=False)
        rows = torch.arange(first_row, first_row + len(values), device=values.device)
        places = rows[:, None] * self._neuron_count + candidates[columns]
        return Chosen(values.flatten(), places.flatten())

    def _in_float32(self, centred: Float[Tensor, "rows d"], chosen: Chosen, slots_at_once: int) -> Chosen:
        """The same choice with the pre-activations that float32 weights give."""
        is_active = chosen.values > 0
        neuron_ids = chosen.places % self._neuron_count
        products = self._sums.dots(
            centred, chosen.places // self._neuron_count, self._parameters.encoder_rows, neuron_ids,
            is_wanted=is_active, slots_at_once=slots_at_once,
        )  # fmt: skip
        values = torch.where(is_active, products + self._parameters.encoder_bias[neuron_ids], 0)
        return Chosen(values, chosen.places)

    def _errors(
        self, inputs: Float[Tensor, "rows d"], decoded: Float[Tensor, "bags d"], layout: Layout
    ) -> tuple[Float[Tensor, "bags d"], Float[Tensor, ""]]:
        """The derivative of what is minimised by every bag's sum, and the loss of the whole autoencoder."""
        nested = decoded[: layout.main_count].view(layout.row_count, layout.level_count, -1)
        nested[:, 0] += self._parameters.decoder_bias - inputs
        for level in range(1, layout.level_count):
            nested[:, level] += nested[:, level - 1]
        residual = -nested[:, -1]
        scale = 2 / (inputs.numel() * self._ranks.count)
        # A bag is part of its own autoencoder and of those that hold it.
        for level in reversed(range(layout.level_count - 1)):
            nested[:, level] += nested[:, level + 1]
        errors = nested.view(layout.main_count, -1).mul_(scale / layout.level_count)
        if len(decoded) > layout.main_count:
            errors = torch.cat([errors, self._auxiliary_errors(residual, decoded[layout.main_count :])])
        return errors, residual.square().mean()

    def _auxiliary_errors(
        self, residual: Float[Tensor, "rows d"], dead_reconstruction: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "rows d"]:
        """The derivative of the auxiliary loss by what the dead neurons make of the residual."""
        reconstruction = dead_reconstruction.detach().requires_grad_()
        with torch.enable_grad():
            loss = auxiliary_loss(residual, reconstruction, self._ranks) * self._auxiliary_coefficient
        return torch.autograd.grad(loss / self._ranks.count, reconstruction)[0]

    def _add_up(
        self,
        slots: Slots,
        slopes: Float[Tensor, " slots"],
        errors: Float[Tensor, "bags d"],
        centred: Float[Tensor, "rows d"],
        layout: Layout,
    ) -> Parameters:
        """Sums over every neuron's slots; only the autoencoder's own reach the decoder bias."""
        order, bags = layout.by_neuron(slots)
        slopes, values, bag_of = slopes[order], slots.values[order], slots.bags[order]
        is_own = torch.ones(len(errors), 2, device=errors.device)
        is_own[layout.main_count :, 1].zero_()
        bias_sums = self._sums.weighted(is_own, bag_of, slopes, *bags)
        first_errors = errors[: layout.main_count].view(layout.row_count, layout.level_count, -1)[:, 0]
        return Parameters(
            encoder_rows=self._sums.weighted(centred, layout.rows(bag_of), slopes, *bags),
            encoder_bias=bias_sums[:, 0].contiguous(),
            directions=self._sums.weighted(errors, bag_of, values, *bags),
            decoder_bias=first_errors.sum(dim=0) - torch.mv(self._parameters.encoder_rows.T, bias_sums[:, 1]),
        )
