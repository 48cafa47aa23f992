"""Rewrites of an autoencoder that leave its codes as they are, or scale them by a stated factor; knows no format.

All of them run in float64 and are rounded once, by `assemble`: what they change in a code is far below 1e-5 of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, Selection, TopK

_SMALLEST_NORM = 1e-8  # below it a direction counts as zero: its neuron writes nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """f = select((x - b_dec) W_enc + b_enc), x^ = f W_dec + b_dec, in float64."""

    encoder_weight: Float[Tensor, "width neurons"]
    """W_enc."""
    encoder_bias: Float[Tensor, " neurons"]
    """b_enc."""
    directions: Float[Tensor, "neurons width"]
    """W_dec."""
    decoder_bias: Float[Tensor, " width"]
    """b_dec."""
    selection: Selection
    """The inference rule; a threshold is in units of the pre-activation."""
    subtract_decoder_bias: bool
    """Whether the encoder reads x - b_dec."""


def assemble(parts: Parts) -> SparseAutoencoder:
    """The autoencoder in float32.

    Raises:
        NumericError: a weight is NaN or infinite.
    """
    match parts.selection:
        case TopK():
            selection: Selection = parts.selection
        case JumpReLU(threshold=threshold):
            selection = JumpReLU(threshold.float())
        case _:
            assert_never(parts.selection)
    return SparseAutoencoder(
        encoder_weight=parts.encoder_weight.float().contiguous(),
        encoder_bias=parts.encoder_bias.float(),
        directions=parts.directions.float().contiguous(),
        decoder_bias=parts.decoder_bias.float(),
        selection=selection,
        subtract_decoder_bias=parts.subtract_decoder_bias,
    )


def ungate(
    parts: Parts,
    *,
    gate_bias: Float[Tensor, " neurons"],
    magnitude_bias: Float[Tensor, " neurons"],
    log_gain: Float[Tensor, " neurons"],
) -> Parts:
    """A gated autoencoder (Rajamanoharan et al. 2024) as the JumpReLU one that it is.

    With s = (x - b_dec) W_enc a neuron is on where s + b_gate > 0, and is then worth relu(e^r s + b_mag). e^r > 0, so
    that the gate says of the pre-activation m = e^r s + b_mag that m > b_mag - e^r b_gate; and relu that m > 0.

    Args:
        parts: `encoder_weight` is the gate's; `encoder_bias` and `selection` are not read.
        gate_bias: b_gate.
        magnitude_bias: b_mag.
        log_gain: r.
    """
    gain = log_gain.exp()
    return replace(
        parts,
        encoder_weight=parts.encoder_weight * gain,
        encoder_bias=magnitude_bias,
        selection=JumpReLU((magnitude_bias - gain * gate_bias).clamp_min(0)),
    )


def by_direction_norm(parts: Parts) -> Parts:
    """Activations times the norm of their direction, directions at unit norm; reconstructions stay."""
    norms = direction_norms(parts.directions)
    match parts.selection:
        case TopK():
            selection: Selection = parts.selection
        case JumpReLU(threshold=threshold):
            selection = JumpReLU(threshold * norms)
        case _:
            assert_never(parts.selection)
    return replace(
        parts,
        encoder_weight=parts.encoder_weight * norms,
        encoder_bias=parts.encoder_bias * norms,
        directions=parts.directions / norms[:, None],
        selection=selection,
    )


def direction_norms(directions: Float[Tensor, "neurons width"]) -> Float[Tensor, " neurons"]:
    """Norms of the directions, none of them zero."""
    norms: Tensor = torch.linalg.vector_norm(directions, dim=1)
    return norms.clamp_min(_SMALLEST_NORM)


def on_unscaled_input(parts: Parts, factor: float) -> Parts:
    """The same codes of x as `parts` gives for factor * x; reconstructions are divided by the factor."""
    return replace(
        parts,
        encoder_weight=parts.encoder_weight * factor,
        directions=parts.directions / factor,
        decoder_bias=parts.decoder_bias / factor,
    )


def on_unwhitened_input(
    parts: Parts,
    *,
    mean: Float[Tensor, " width"],
    matrix: Float[Tensor, "width width"],
    inverse: Float[Tensor, "width width"],
) -> Parts:
    """The same codes of x as `parts` gives for (x - mean) M; reconstructions become x^ M^-1 + mean."""
    weight = matrix @ parts.encoder_weight
    bias = parts.encoder_bias if parts.subtract_decoder_bias else parts.encoder_bias - mean @ weight
    return replace(
        parts,
        encoder_weight=weight,
        encoder_bias=bias,
        directions=parts.directions @ inverse,
        decoder_bias=parts.decoder_bias @ inverse + mean,
    )


def just_below(threshold: Float[Tensor, "*neurons"]) -> Float[Tensor, "*neurons"]:
    """The threshold that our `>` must have to select what `>=` selects at this one, among float32 activations."""
    return torch.nextafter(threshold.float(), torch.tensor(-torch.inf)).double()
