import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.sparse.dispatch import NeverWaits
from training.sparse.dead_forecast import DeadForecast

NEURONS = 12


@given(
    seed=st.integers(0, 2**16),
    dead_after=st.integers(1, 90),
    row_counts=st.lists(st.sampled_from([4, 4, 4, 9]), min_size=1, max_size=40),
    restart_at=st.integers(0, 40),
)
@settings(max_examples=80)
def test_never_fewer_than_are_dead(seed: int, dead_after: int, row_counts: list[int], restart_at: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    silence = torch.rand(NEURONS, generator=generator)
    samples = torch.zeros(NEURONS, dtype=torch.int64)
    forecast = DeadForecast(dead_after)
    for step, row_count in enumerate(row_counts):
        if step == restart_at:
            forecast.restart(samples, 4)
        assert int((samples >= dead_after).sum()) <= forecast.limit() <= NEURONS
        fires = torch.rand(NEURONS, generator=generator) > silence
        samples = torch.where(fires, 0, samples + row_count)
        forecast.advance(samples, row_count)


def test_none_is_expected_before_one_can_be_dead_and_no_more_than_are_silent_later() -> None:
    """With equal steps nothing is read that was not counted beforehand."""
    forecast, samples = DeadForecast(100), torch.zeros(NEURONS, dtype=torch.int64)
    limits = []
    with NeverWaits():
        for _ in range(30):
            limits.append(forecast.limit())
            samples = torch.where(torch.arange(NEURONS) < 3, samples + 10, 0)
            forecast.advance(samples, 10)
    assert limits == [0] * 10 + [3] * 20
