"""Rewrites against the formulas they stand for, on random autoencoders."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phosphene.selection import JumpReLU, TopK
from training.exchange.folding import Parts, assemble, by_direction_norm, just_below, ungate

WIDTH, NEURONS, ROWS = 5, 9, 200


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(seed: int, *, subtract: bool = True) -> Parts:
    return Parts(
        encoder_weight=noise(WIDTH, NEURONS, seed=seed),
        encoder_bias=noise(NEURONS, seed=seed + 1),
        directions=noise(NEURONS, WIDTH, seed=seed + 2),
        decoder_bias=noise(WIDTH, seed=seed + 3),
        selection=JumpReLU(torch.zeros(NEURONS, dtype=torch.float64)),
        subtract_decoder_bias=subtract,
    )


def dense(given_parts: Parts, residuals: Tensor) -> Tensor:
    codes = assemble(given_parts).encode(residuals.float(), limit=NEURONS)
    return torch.zeros(len(residuals), NEURONS).scatter_add(1, codes.neuron_ids, codes.values).double()


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), subtract=st.booleans())
def test_a_gated_autoencoder_is_a_jumprelu_one(seed: int, subtract: bool) -> None:
    gated = parts(seed, subtract=subtract)
    gate_bias, magnitude_bias, log_gain = (noise(NEURONS, seed=seed + i) for i in (4, 5, 6))
    residuals = noise(ROWS, WIDTH, seed=seed + 7).float().double()
    shared = (residuals - gated.decoder_bias * subtract) @ gated.encoder_weight
    gate, magnitude = shared + gate_bias, shared * log_gain.exp() + magnitude_bias
    due = torch.where(gate > 0, magnitude.clamp_min(0), 0)
    found = dense(ungate(gated, gate_bias=gate_bias, magnitude_bias=magnitude_bias, log_gain=log_gain), residuals)
    # Apart from what lies within rounding of the gate.
    clear = (gate.abs() > 1e-5) & (magnitude.abs() > 1e-5)
    torch.testing.assert_close(found * clear, due * clear, rtol=1e-5, atol=1e-5)


def test_a_direction_of_norm_zero_stays_finite() -> None:
    silent = parts(0)
    silent.directions[3] = 0
    sae = assemble(by_direction_norm(replace(silent, selection=TopK(4))))
    residuals = noise(ROWS, WIDTH, seed=1).float()
    codes = sae.encode(residuals, limit=NEURONS)
    assert bool(torch.isfinite(sae.decode(codes)).all())
    assert bool((sae.directions[3] == 0).all())


def test_at_least_becomes_greater_than() -> None:
    threshold = torch.tensor([0.1, 1.0, 3e-5])
    assert bool((threshold > just_below(threshold).float()).all())
    below = torch.nextafter(threshold, torch.tensor(-torch.inf))
    assert not bool((below > just_below(threshold).float()).any())
