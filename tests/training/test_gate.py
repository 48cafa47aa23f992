import dataclasses

import pytest

from training.calibration import Calibration
from training.gate import NotPublished, check_publishable
from training.quality import Quality

GOOD = Quality(fvu=0.2, explained_variance=0.8, l0=8.0, dead_share=0.1, row_count=1000)
CALIBRATED = Calibration(threshold=0.5, l0_fitted=8.0, l0_checked=8.1, l0_error=0.1, holds=True)


def passes(
    *, training: Quality = GOOD, held_out: Quality = GOOD, calibration: Calibration | None = None, k: int | None = 8
) -> None:
    check_publishable(training=training, held_out=held_out, calibration=calibration, k=k, token_code_limit=64)


def test_a_good_autoencoder_passes() -> None:
    passes(training=GOOD, held_out=GOOD, calibration=CALIBRATED, k=8)
    passes(training=GOOD, held_out=GOOD, calibration=None, k=8)


@pytest.mark.parametrize("fvu", [1.0, 7.5, float("nan"), float("inf")])
def test_a_diverged_one_is_held_back(fvu: float) -> None:
    bad = dataclasses.replace(GOOD, fvu=fvu)
    with pytest.raises(NotPublished, match="it diverged: .*; lower --lr$"):
        passes(training=bad, held_out=GOOD, calibration=None, k=8)
    with pytest.raises(NotPublished, match="it diverged: .*; lower --lr or --sparsity$"):
        passes(training=bad, held_out=GOOD, calibration=None, k=None)


def test_one_that_does_not_generalise_is_held_back() -> None:
    with pytest.raises(NotPublished, match="does not generalise"):
        passes(training=GOOD, held_out=dataclasses.replace(GOOD, fvu=1.2), calibration=None, k=8)


def test_a_dead_one_is_held_back() -> None:
    with pytest.raises(NotPublished, match="95% of its neurons never fire"):
        passes(training=dataclasses.replace(GOOD, dead_share=0.95), held_out=GOOD, calibration=None, k=8)


def test_a_threshold_that_does_not_carry_over_is_held_back_unless_the_half_is_too_small_to_tell() -> None:
    off = dataclasses.replace(CALIBRATED, l0_checked=11.0, holds=False)
    with pytest.raises(NotPublished, match="does not carry over"):
        passes(training=GOOD, held_out=GOOD, calibration=off, k=8)
    noisy = dataclasses.replace(off, l0_error=1.0)
    passes(training=GOOD, held_out=GOOD, calibration=noisy, k=8)


def test_all_reasons_come_in_one_error() -> None:
    bad = dataclasses.replace(GOOD, fvu=2.0, dead_share=0.99)
    with pytest.raises(NotPublished, match=r"diverged.*never fire"):
        passes(training=bad, held_out=bad, calibration=None, k=8)


def test_one_that_never_fires_is_held_back_with_the_remedy_of_its_variant() -> None:
    silent = dataclasses.replace(GOOD, l0=0.0, dead_share=1.0, fvu=1.0)
    with pytest.raises(NotPublished, match=r"not published: no neuron ever fires: .* a lower --sparsity, or [^;]*$"):
        passes(training=silent, held_out=silent, k=None)
    with pytest.raises(NotPublished, match="no neuron ever fires: .* a higher --k"):
        passes(training=silent, held_out=silent)


def test_a_mostly_dead_one_without_k_is_told_of_its_penalty() -> None:
    with pytest.raises(NotPublished, match="95% of its neurons never fire .* or a lower --sparsity"):
        passes(training=dataclasses.replace(GOOD, dead_share=0.95), k=None)


def test_one_whose_codes_are_mostly_cut_is_held_back_where_it_has_no_k() -> None:
    cut = dataclasses.replace(GOOD, cut_share=0.4)
    with pytest.raises(NotPublished, match="40% of its codes are cut .* more than 64 .* a higher --sparsity"):
        passes(held_out=cut, k=None)
    passes(held_out=dataclasses.replace(GOOD, cut_share=0.05), k=None)
    passes(held_out=cut)
