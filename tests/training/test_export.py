import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import NumericError
from phosphene.selection import JumpReLU, Selection, TopK
from training.export import as_trained, check_folding, fold
from training.scaling import Scaling, make_scaling
from training.weights import Weights


def draw_weights(seed: int, width: int = 8, neurons: int = 20) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return Weights(
        encoder_weight=torch.randn(width, neurons, generator=generator),
        encoder_bias=0.3 * torch.randn(neurons, generator=generator),
        directions=torch.nn.functional.normalize(torch.randn(neurons, width, generator=generator), dim=1),
        decoder_bias=0.5 * torch.randn(width, generator=generator),
    )


def draw_scaling(seed: int, scale: float, width: int = 8) -> Scaling:
    return Scaling(mean=10 * torch.randn(width, generator=torch.Generator().manual_seed(seed)), scale=scale)


@given(st.integers(0, 2**16), st.floats(0.01, 100), st.booleans())
@settings(max_examples=40)
def test_folding_keeps_codes_and_reconstructions(seed: int, scale: float, jumps: bool) -> None:
    weights, scaling = draw_weights(seed), draw_scaling(seed, scale)
    selection: Selection = JumpReLU(torch.full((20,), 0.4)) if jumps else TopK(4)
    scaled = torch.randn(30, 8, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    residuals = (scaled * scaling.scale + scaling.mean).float()
    before, after = as_trained(weights, selection), fold(weights, selection, scaling)
    # Far from zero the residuals themselves are rounded: the codes are compared on what float32 can hold.
    tolerance = 2e-4 if scale < 1 else 2e-5
    due = before.encode(scaling.apply(residuals), limit=20)
    found = after.encode(residuals, limit=20)
    assert torch.allclose(found.values / scaling.scale, due.values, atol=tolerance * float(due.values.max() + 1))
    unscaled = before.decode(due) * scaling.scale + scaling.mean
    assert torch.allclose(after.decode(found), unscaled, atol=tolerance * float(unscaled.abs().max() + 1))


@pytest.mark.parametrize("selection", [TopK(4), JumpReLU(torch.full((20,), 0.4))], ids=["topk", "jumprelu"])
def test_the_check_passes_a_right_folding_and_refuses_a_wrong_one(selection: Selection) -> None:
    weights, scaling = draw_weights(1), draw_scaling(1, 3.0)
    residuals = scaling.scale * torch.randn(100, 8, generator=torch.Generator().manual_seed(2)) + scaling.mean
    before = as_trained(weights, selection)
    check_folding(before, fold(weights, selection, scaling), scaling, residuals, token_code_limit=20)
    off = Scaling(mean=scaling.mean + 0.01, scale=scaling.scale)
    with pytest.raises(NumericError, match="nothing is published"):
        check_folding(before, fold(weights, selection, off), scaling, residuals, token_code_limit=20)


@pytest.mark.parametrize("selection", [TopK(4), JumpReLU(torch.zeros(512))], ids=["topk", "relu"])
@pytest.mark.parametrize("seed", range(5))
def test_codes_of_next_to_nothing_are_no_reason_to_refuse(selection: Selection, seed: int) -> None:
    weights, scaling = draw_weights(seed, 128, 512), draw_scaling(seed, 3.0, 128)
    weights.encoder_weight.div_(128**0.5)
    weights.encoder_bias.sub_(3.0)
    generator = torch.Generator().manual_seed(seed)
    residuals = scaling.scale * torch.randn(256, 128, generator=generator) + scaling.mean
    before, after = as_trained(weights, selection), fold(weights, selection, scaling)
    largest = after.encode(residuals, limit=64).values[:, 0]
    assert 0 < float(largest[largest > 0].min()) < 0.05 * float(largest.median())
    check_folding(before, after, scaling, residuals, token_code_limit=64)
    off = Scaling(mean=scaling.mean + 0.001, scale=scaling.scale)
    with pytest.raises(NumericError, match="nothing is published"):
        check_folding(before, fold(weights, selection, off), scaling, residuals, token_code_limit=64)


def test_rows_without_a_code_agree() -> None:
    weights, scaling, selection = draw_weights(1), draw_scaling(1, 3.0), JumpReLU(torch.full((20,), 100.0))
    residuals = scaling.mean + torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    check_folding(
        as_trained(weights, selection), fold(weights, selection, scaling), scaling, residuals, token_code_limit=20
    )


def test_the_check_sees_a_forgotten_threshold() -> None:
    weights, scaling = draw_weights(1), draw_scaling(1, 3.0)
    residuals = scaling.scale * torch.randn(100, 8, generator=torch.Generator().manual_seed(2)) + scaling.mean
    selection = JumpReLU(torch.full((20,), 0.4))
    unscaled = fold(weights, JumpReLU(selection.threshold / scaling.scale), scaling)
    with pytest.raises(NumericError):
        check_folding(as_trained(weights, selection), unscaled, scaling, residuals, token_code_limit=20)


def test_scaling_gives_mean_zero_and_mean_square_one() -> None:
    rows = 7 * torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) + 100
    mean = rows.mean(dim=0)
    scaled = make_scaling(mean, float((rows - mean).square().mean())).apply(rows)
    assert torch.allclose(scaled.mean(dim=0), torch.zeros(6), atol=1e-4)
    assert abs(float(scaled.square().mean()) - 1) < 1e-4


def test_residuals_that_do_not_vary_are_refused() -> None:
    with pytest.raises(NumericError, match="do not vary"):
        make_scaling(torch.full((4,), 3.0), 0.0)
