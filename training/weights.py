"""The four weight tensors of an autoencoder in training, and where they start; knows nothing of optimisers.

Directions start as random unit vectors; where a row activates few of many neurons, drawn towards rows of the data: what
the rows are made of is found sooner from there, with fewer dead neurons. (Neurons that start at the same row differ by
their random part.) With a fixed number of active neurons the encoder starts as the directions' transpose times the
factor that makes the first reconstruction best in the least-squares sense (tying as in Gao et al. 2024, appendix A.1).
The decoder bias starts at the mean or the geometric median.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from training.active import choose_active, decode_active
from training.settings import BiasInit, SaeSettings
from training.variants import JumpReluTraining, ReluTraining

# The data's part of a direction at the start. At 0.5 the known directions of made-up data were found less often (MMCS
# .78 against .84); 1 is no better, and leaves neurons that start at the same row equal for ever.
_DATA_SHARE = 0.7
# With fewer neurons for each active one, random directions are better: a row is then a mixture of much of what there
# is to find, and neurons that start at mixtures stay there. At 6 (rendered scenes) concepts were found worse from rows
# (mean average precision lower by .05 to .08), at 48 (photos) and 128 they were found better.
_LEAST_NEURONS_PER_ACTIVE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Weights in units of the scaled residual; the tensors are updated in place."""

    encoder_weight: Float[Tensor, "d neurons"]
    """W_enc."""
    encoder_bias: Float[Tensor, " neurons"]
    """b_enc."""
    directions: Float[Tensor, "neurons d"]
    """W_dec; rows of unit norm."""
    decoder_bias: Float[Tensor, " d"]
    """b_dec; subtracted before encoding and added after decoding."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def pre_activations(self, inputs: Float[Tensor, "rows d"]) -> Float[Tensor, "rows neurons"]:
        """Encoder outputs before any non-linearity."""
        return torch.addmm(self.encoder_bias, inputs - self.decoder_bias, self.encoder_weight)


def initial_weights(sample: Float[Tensor, "rows d"], sae: SaeSettings, *, bias_init: BiasInit, seed: int) -> Weights:
    """Weights at step zero.

    Args:
        sample: scaled training rows; decides the decoder bias, the directions and the encoder's factor.
        sae: size and rule.
        bias_init: where the decoder bias starts.
        seed: decides which rows, and the random part of the directions.
    """
    width = sample.shape[1]
    match bias_init:
        case BiasInit.MEAN:
            decoder_bias = sample.mean(dim=0)
        case BiasInit.GEOMETRIC_MEDIAN:
            decoder_bias = geometric_median(sample)
        case _:
            assert_never(bias_init)
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(sae.neuron_count, width, generator=generator), dim=1)
    if _has_many_neurons(sae):
        chosen = torch.randint(len(sample), (sae.neuron_count,), generator=generator)
        towards = normalize(sample[chosen] - decoder_bias, dim=1)
        directions = normalize((1 - _DATA_SHARE) * directions + _DATA_SHARE * towards, dim=1)
    tied = Weights(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(sae.neuron_count),
        directions=directions,
        decoder_bias=decoder_bias,
    )
    tied.encoder_weight.mul_(_best_factor(tied, sample, sae))
    return tied


def _has_many_neurons(sae: SaeSettings) -> bool:
    match sae.variant:
        case ReluTraining() | JumpReluTraining():
            return False  # Their recipes start at random directions.
        case variant:
            return sae.neuron_count >= _LEAST_NEURONS_PER_ACTIVE * variant.k


def on_cpu(weights: Weights) -> Weights:
    """Detached copies on the CPU."""
    return Weights(**{name: tensor.detach().cpu().clone() for name, tensor in weights.tensors().items()})


def geometric_median(
    rows: Float[Tensor, "rows d"], *, iteration_limit: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d"]:
    """The point with the least summed distance to the rows, by Weiszfeld's iteration (1937).

    Args:
        rows: points.
        iteration_limit: iterations at most.
        tolerance: stop when a step is shorter than this share of the rows' mean distance.
    """
    points = rows.double()
    median = points.mean(dim=0)
    for _ in range(iteration_limit):
        distances = (points - median).norm(dim=1).clamp_min(1e-12)
        pull = 1 / distances
        moved = (points * pull[:, None]).sum(dim=0) / pull.sum()
        step = (moved - median).norm()
        median = moved
        if step <= tolerance * distances.mean():
            break
    return median.to(rows.dtype)


def _best_factor(tied: Weights, sample: Float[Tensor, "rows d"], sae: SaeSettings) -> float:
    # Activations are linear in the factor, and scaling all of them alike moves no selection: least squares is exact.
    match sae.variant:
        case ReluTraining() | JumpReluTraining():
            return 1.0
        case variant:
            pass
    rows = sample[:1024]
    target = rows - tied.decoder_bias
    active = choose_active(variant, tied.pre_activations(rows))
    reconstruction = decode_active(active, tied.directions)
    energy = float(reconstruction.square().sum())
    return float((target * reconstruction).sum()) / energy if energy > 0 else 1.0
