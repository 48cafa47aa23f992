import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import NumericError
from training.calibration import calibrate, fit_threshold


def identity(rows: torch.Tensor) -> torch.Tensor:
    return rows


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(5, 60))
@settings(max_examples=30)
def test_the_threshold_leaves_exactly_k_per_row_on_average(seed: int, k: int, row_count: int) -> None:
    rows = torch.rand(row_count, 12, generator=torch.Generator().manual_seed(seed)) + 0.01
    threshold = fit_threshold(identity, rows, k)
    assert int((rows > threshold).sum()) == k * row_count


def test_the_threshold_does_not_depend_on_the_size_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(5000, 40, generator=torch.Generator().manual_seed(0))
    due = sorted(rows.flatten().tolist(), reverse=True)[3 * 5000 - 1 : 3 * 5000 + 1]
    assert fit_threshold(identity, rows, 3) == pytest.approx(sum(due) / 2, rel=1e-6)
    monkeypatch.setattr("training.calibration._BLOCK_ROWS", 7)
    assert fit_threshold(identity, rows, 3) == pytest.approx(sum(due) / 2, rel=1e-6)


def test_the_other_half_is_measured_and_judged() -> None:
    generator = torch.Generator().manual_seed(1)
    fitted, checked = (torch.randn(4000, 50, generator=generator) for _ in range(2))
    result = calibrate(identity, fitted, checked, 4)
    assert result.l0_fitted == pytest.approx(4)
    assert result.l0_checked == pytest.approx(float((checked > result.threshold).sum()) / 4000)
    assert result.holds
    assert not calibrate(identity, fitted, checked + 0.2, 4).holds


def test_too_few_firing_neurons_are_refused() -> None:
    with pytest.raises(NumericError, match="k is 5"):
        fit_threshold(identity, torch.cat([torch.ones(20, 4), -torch.ones(20, 9)], dim=1), 5)
