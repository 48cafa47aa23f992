"""A finished autoencoder -> weights to train on from: the inverse of the folding at export; knows no format."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from phosphene.errors import ArtefactMismatch
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, Selection, TopK
from training.exchange.folding import Parts, by_direction_norm
from training.scaling import Scaling
from training.weights import Weights


def as_weights(sae: SparseAutoencoder, scaling: Scaling) -> Weights:
    """Weights that, folded with this scaling, give the autoencoder back.

    Directions come out at unit norm, as training keeps them, and each activation takes the norm over. Under JumpReLU
    that moves no selection; under TopK, neurons then compete by what they add to the residual.

    Args:
        sae: on residuals as the encoder gives them.
        scaling: of the residuals that training goes on with.

    Raises:
        ArtefactMismatch: the residuals are of another width.
    """
    parts = _scaled(sae, scaling)
    return Weights(
        encoder_weight=parts.encoder_weight.float().contiguous(),
        encoder_bias=parts.encoder_bias.float().contiguous(),
        directions=parts.directions.float().contiguous(),
        decoder_bias=parts.decoder_bias.float().contiguous(),
    )


def as_selection(sae: SparseAutoencoder, scaling: Scaling) -> Selection:
    """The inference rule that goes with `as_weights`: a threshold in units of the scaled pre-activation."""
    match _scaled(sae, scaling).selection:
        case TopK() as selection:
            return selection
        case JumpReLU(threshold=threshold):
            return JumpReLU(threshold.float())
        case other:
            assert_never(other)


def _scaled(sae: SparseAutoencoder, scaling: Scaling) -> Parts:
    if len(scaling.mean) != sae.width:
        raise ArtefactMismatch(
            f"the SAE reads residuals of width {sae.width}, and those to train on have {len(scaling.mean)}: choose the "
            "site that it was trained at"
        )
    match sae.selection:
        case TopK():
            selection: Selection = sae.selection
        case JumpReLU(threshold=threshold):
            selection = JumpReLU(threshold.double())
        case _:
            assert_never(sae.selection)
    bias, decoder_bias = sae.encoder_bias.double(), sae.decoder_bias.double()
    if not sae.subtract_decoder_bias:
        bias = bias + decoder_bias @ sae.encoder_weight.double()
    parts = by_direction_norm(
        Parts(
            encoder_weight=sae.encoder_weight.double(),
            encoder_bias=bias,
            directions=sae.directions.double(),
            decoder_bias=(decoder_bias - scaling.mean.double()) / scaling.scale,
            selection=selection,
            subtract_decoder_bias=True,
        )
    )
    match parts.selection:
        case TopK():
            rule: Selection = parts.selection
        case JumpReLU(threshold=threshold):
            rule = JumpReLU(threshold / scaling.scale)
        case _:
            assert_never(parts.selection)
    return replace(parts, encoder_bias=parts.encoder_bias / scaling.scale, selection=rule)
