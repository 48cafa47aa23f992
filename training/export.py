"""Trained weights -> the autoencoder that ships: inference rule, folding, and proof that folding changed no code.

Knows nothing of bundles. The folding is section 5 of docs/design.md.
"""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.agreement import tokens_differ
from phosphene.errors import NumericError
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, Selection, TopK
from training.scaling import Scaling
from training.weights import Weights

_RELATIVE_TOLERANCE = 1e-5
_CHECKED_ROWS = 256


def as_trained(weights: Weights, selection: Selection) -> SparseAutoencoder:
    """The inference rule on scaled residuals, before folding."""
    return SparseAutoencoder(
        encoder_weight=weights.encoder_weight,
        encoder_bias=weights.encoder_bias,
        directions=weights.directions,
        decoder_bias=weights.decoder_bias,
        selection=selection,
        subtract_decoder_bias=True,
    )


def fold(weights: Weights, selection: Selection, scaling: Scaling) -> SparseAutoencoder:
    """The same autoencoder on residuals as the encoder gives them; its activations are `scaling.scale` times larger."""
    match selection:
        case TopK():
            folded: Selection = selection
        case JumpReLU(threshold=threshold):
            folded = JumpReLU(threshold=threshold * scaling.scale)
        case _:
            assert_never(selection)
    return SparseAutoencoder(
        encoder_weight=weights.encoder_weight,
        encoder_bias=weights.encoder_bias * scaling.scale,
        directions=weights.directions,
        decoder_bias=scaling.fold_decoder_bias(weights.decoder_bias),
        selection=folded,
        subtract_decoder_bias=True,
    )


def check_folding(
    before: SparseAutoencoder,
    after: SparseAutoencoder,
    scaling: Scaling,
    residuals: Float[Tensor, "rows d"],
    *,
    token_code_limit: int,
) -> None:
    """Refuse an export whose codes differ from those before folding.

    Values may differ by 1e-5 of the row's largest; where that is below the median of the rows that have a code, by 1e-5
    of the median: float32 rounds by the size of what is summed up, not by what is left of it. A neuron may come or go
    only where it is as close to the edge of selection as that.

    Raises:
        NumericError: codes differ.
    """
    rows = residuals[:_CHECKED_ROWS]
    due = before.encode(scaling.apply(rows), limit=token_code_limit)
    due = due._replace(values=due.values * scaling.scale)
    found = after.encode(rows, limit=token_code_limit)
    largest = torch.maximum(due.values[:, :1], found.values[:, :1])
    median = largest[largest > 0].median().nan_to_num(0)  # NaN where no row has a code.
    tolerance = _RELATIVE_TOLERANCE * largest.clamp_min(median)
    wrong = tokens_differ(due, found, after.selection, tolerance)
    if bool(wrong.any()):
        raise NumericError(
            f"folding the input scaling into the weights changed the codes of {int(wrong.sum())} of {len(rows)} "
            f"held-out residuals by more than {_RELATIVE_TOLERANCE:g} of their largest value; nothing is published: "
            "the site's residuals are too far from zero for float32, choose another"
        )
