"""Training losses as pure functions of tensors; knows nothing of modules, optimisers or data.

The auxiliary loss: Gao et al., "Scaling and evaluating sparse autoencoders" (2024), section 2.4 and appendix A.2. The
L1 penalty: Bricken et al., "Towards monosemanticity" (2023). Ghost gradients: Anthropic, "Circuits updates - January
2024", as Hugo Fry's published autoencoders of CLIP (2024) were trained. The straight-through estimator: Rajamanoharan
et al., "Jumping ahead" (2024), section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from training.ranks import ALONE, Ranks

AUXILIARY_COEFFICIENT = 1 / 32

_NORM_FLOOR = 1e-6
"""What shorter rows are divided by, so that a row of zeros costs something finite."""


def reconstruction_loss(inputs: Float[Tensor, "rows d"], reconstruction: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
    """Mean squared error per coordinate; dimensionless, since inputs have a mean square of one.

    Args:
        inputs: centred and scaled residuals.
        reconstruction: what the autoencoder makes of them.

    Returns:
        A scalar >= 0; 1 is about what predicting the mean costs.
    """
    return (inputs - reconstruction).square().mean()


def auxiliary_loss(
    residual: Float[Tensor, "rows d"], dead_reconstruction: Float[Tensor, "rows d"], ranks: Ranks = ALONE
) -> Float[Tensor, ""]:
    """How badly the dead neurons explain what the living ones left over, normalised by its variance.

    Args:
        residual: inputs minus reconstruction; no gradient flows into it.
        dead_reconstruction: the sum of the strongest dead neurons' directions, without the decoder bias.
        ranks: who else has a part of the rows, equally large: the variance is that of all of them.

    Returns:
        A scalar >= 0; 0 where the residual does not vary (nothing is left to explain).
    """
    target = residual.detach()
    mean = target.mean(dim=0) / ranks.count
    ranks.add_tensors(mean)
    variance = (target - mean).square().mean() / ranks.count
    ranks.add_tensors(variance)
    error = (target - dead_reconstruction).square().mean()
    is_varied = variance > torch.finfo(variance.dtype).tiny
    return torch.where(is_varied, error / torch.where(is_varied, variance, 1), 0)


def auxiliary_width(dead_count: int, input_width: int) -> int:
    """How many dead neurons each row may use: min(d / 2, dead), and at least one where any is dead."""
    return min(max(input_width // 2, 1), dead_count)


def squared_errors(
    inputs: Float[Tensor, "rows d"], reconstruction: Float[Tensor, "rows d"], *, is_normalised: bool
) -> Float[Tensor, "rows d"]:
    """What each coordinate costs: (x - x^)^2, or (x - x^)^2 / |x| with |x| the Euclidean norm of the row.

    The normalised form is Hugo Fry's: x as the autoencoder sees it, not centred again, and the norm, not its square
    (later releases of the trainer he started from centre x by the batch's mean first). The loss is the mean of it.

    Args:
        inputs: residuals.
        reconstruction: what the autoencoder makes of them.
        is_normalised: whether to divide each row by the norm of its input.
    """
    squares = (inputs - reconstruction).square()
    return squares / _row_norms(inputs).clamp_min(_NORM_FLOOR) if is_normalised else squares


def l1_penalty(activations: Float[Tensor, "rows neurons"]) -> Float[Tensor, ""]:
    """The batch mean of the sum of a row's activations, which are >= 0."""
    return activations.sum(dim=1).mean()


def ghost_loss(
    errors: Float[Tensor, "rows d"],
    residual: Float[Tensor, "rows d"],
    dead_pre_activations: Float[Tensor, "rows dead"],
    dead_directions: Float[Tensor, "dead d"],
) -> Float[Tensor, ""]:
    """How badly dead neurons, fired through an exponential, explain half of what is left over; as large as the error.

    With r the residual and g = exp(h) D, g is scaled to half the length of r, g' = g |r| / (1e-6 + 2 |g|), and costs
    e = (g' - r)^2 / |r| per coordinate, times errors / (e + 1e-6). The scale and the last factor take no gradient.

    Args:
        errors: what each coordinate of the reconstruction costs, by `squared_errors`; no gradient flows into it.
        residual: inputs minus reconstruction; no gradient flows into it.
        dead_pre_activations: h, of the dead neurons only.
        dead_directions: D, their directions.

    Returns:
        A scalar equal to the mean of `errors`, but for coordinates that the ghosts explain within about 1e-6.
    """
    target = residual.detach()
    lengths = _row_norms(target)
    # exp(h) overflows from h = 88 on. A factor per row cancels in the scale, the 1e-6 shrunk with it.
    shift = dead_pre_activations.detach().amax(dim=1, keepdim=True).clamp_min(0)
    ghosts = (dead_pre_activations - shift).exp() @ dead_directions
    scale = lengths / (1e-6 * (-shift).exp() + 2 * _row_norms(ghosts.detach()))
    costs = (ghosts * scale - target).square() / lengths.clamp_min(_NORM_FLOOR)
    loss: Tensor = (costs * (errors.detach() / (costs.detach() + 1e-6))).mean()
    return loss


class Jumped(NamedTuple):
    """What JumpReLU lets through."""

    activations: Float[Tensor, "rows neurons"]
    """The pre-activation where it exceeds the threshold, else 0."""
    l0: Float[Tensor, ""]
    """The batch mean of the number of active neurons."""


def jump_relu(
    pre_activations: Float[Tensor, "rows neurons"], threshold: Float[Tensor, " neurons"], *, bandwidth: float
) -> Jumped:
    """JumpReLU and its L0, both with pseudo-derivatives for the threshold.

    With K = 1 where |h - threshold| < bandwidth / 2 and else 0, an activation's derivative is 1 for an active
    pre-activation and -(threshold / bandwidth) K for the threshold; the derivative of "is active" is 0 for the
    pre-activation and -(1 / bandwidth) K for the threshold.

    Args:
        pre_activations: encoder outputs before any non-linearity.
        threshold: one per neuron, >= 0, in units of the pre-activation.
        bandwidth: width of the rectangle kernel, in units of the pre-activation.
    """
    outputs: tuple[Tensor, Tensor] = _JumpReLU.apply(pre_activations, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return Jumped(*outputs)


class _JumpReLU(torch.autograd.Function):
    # Both outputs in one function: the dense kernel is made once, and only where gradients are asked for.
    @staticmethod
    def forward(ctx: Any, pre_activations: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre_activations, threshold)
        ctx.bandwidth = bandwidth
        is_active = pre_activations > threshold
        l0 = is_active.sum().to(pre_activations.dtype) / len(is_active)
        return torch.where(is_active, pre_activations, 0), l0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_activations, threshold = ctx.saved_tensors
        of_activations, of_l0 = gradients
        excess = pre_activations - threshold
        pull = torch.where(excess.abs() < ctx.bandwidth / 2, of_activations * threshold + of_l0 / len(excess), 0)
        return torch.where(excess > 0, of_activations, 0), pull.sum(dim=0) / -ctx.bandwidth, None


def _row_norms(rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows 1"]:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return norms
