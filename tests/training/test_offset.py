import pytest
import torch

from tests.training.recorded_progress import RecordedProgress
from training.offset import OFFSET_LIMIT, offset_ratio, warn_of_offset


def test_the_ratio_is_that_of_the_norms() -> None:
    rows = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    rows[:, 3] += 400  # one loud coordinate, as ViTs have
    deviations = rows - rows.mean(dim=0)
    due = rows.mean(dim=0).norm() / deviations.norm(dim=1).square().mean().sqrt()
    assert offset_ratio(rows.mean(dim=0), float(deviations.square().mean().sqrt())) == pytest.approx(float(due))


def test_a_mean_that_costs_digits_is_told_and_a_small_one_is_not() -> None:
    progress = RecordedProgress()
    warn_of_offset(torch.full((16,), 5.0), 1.0, progress)
    warn_of_offset(torch.zeros(16), 1.0, progress)
    assert progress.events == []
    warn_of_offset(torch.full((16,), 500.0), 0.5, progress)
    told = {"mean_over_std": 1000.0, "digits_lost": 3.0, "digits_of_float32": 7.2}
    assert progress.events == [("the mean is large against the variation of the residuals", told)]


def test_the_warning_is_due_before_folding_in_float32_moves_codes_by_more_than_they_may() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(256, 512, generator=generator), torch.randn(512, 1024, generator=generator) / 512**0.5
    due = rows.double() @ weight.double()

    def error(ratio: float) -> float:
        mean = torch.full((512,), ratio)
        folded = (rows + mean) @ weight - mean @ weight
        return float((folded - due).abs().max() / due.abs().max())

    assert error(OFFSET_LIMIT) < 1e-5 < error(4 * OFFSET_LIMIT)
