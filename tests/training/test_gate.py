import dataclasses

import pytest

from training.calibration import Calibration
from training.gate import NotPublished, check_publishable
from training.quality import Quality

GOOD = Quality(fvu=0.2, explained_variance=0.8, l0=8.0, dead_share=0.1, row_count=1000)
CALIBRATED = Calibration(threshold=0.5, l0_fitted=8.0, l0_checked=8.1, l0_error=0.1, holds=True)


def test_a_good_autoencoder_passes() -> None:
    check_publishable(training=GOOD, held_out=GOOD, calibration=CALIBRATED, k=8)
    check_publishable(training=GOOD, held_out=GOOD, calibration=None, k=8)


@pytest.mark.parametrize("fvu", [1.0, 7.5, float("nan"), float("inf")])
def test_a_diverged_one_is_held_back(fvu: float) -> None:
    with pytest.raises(NotPublished, match="it diverged"):
        check_publishable(training=dataclasses.replace(GOOD, fvu=fvu), held_out=GOOD, calibration=None, k=8)


def test_one_that_does_not_generalise_is_held_back() -> None:
    with pytest.raises(NotPublished, match="does not generalise"):
        check_publishable(training=GOOD, held_out=dataclasses.replace(GOOD, fvu=1.2), calibration=None, k=8)


def test_a_dead_one_is_held_back() -> None:
    with pytest.raises(NotPublished, match="95% of its neurons never fire"):
        check_publishable(training=dataclasses.replace(GOOD, dead_share=0.95), held_out=GOOD, calibration=None, k=8)


def test_a_threshold_that_does_not_carry_over_is_held_back_unless_the_half_is_too_small_to_tell() -> None:
    off = dataclasses.replace(CALIBRATED, l0_checked=11.0, holds=False)
    with pytest.raises(NotPublished, match="does not carry over"):
        check_publishable(training=GOOD, held_out=GOOD, calibration=off, k=8)
    noisy = dataclasses.replace(off, l0_error=1.0)
    check_publishable(training=GOOD, held_out=GOOD, calibration=noisy, k=8)


def test_all_reasons_come_in_one_error() -> None:
    bad = dataclasses.replace(GOOD, fvu=2.0, dead_share=0.99)
    with pytest.raises(NotPublished, match=r"diverged.*never fire"):
        check_publishable(training=bad, held_out=bad, calibration=None, k=8)
