import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.latency import LatencyModel, retry_after_s

COSTS = st.one_of(st.just(0.0), st.floats(1e-3, 1e4))

SIZES = [1.0, 16.0, 5.0, 8.0, 2.0, 16.0, 12.0, 3.0]


def learnt(pairs):
    model = LatencyModel()
    for cost, duration_s in pairs:
        model.observe("encode", cost=cost, duration_s=duration_s)
    return model


def line(slope_s, fixed_s, count=64):
    return [(SIZES[k % len(SIZES)], slope_s * SIZES[k % len(SIZES)] + fixed_s) for k in range(count)]


@settings(max_examples=30)
@given(st.floats(1e-4, 1), st.floats(0, 1))
def test_a_line_is_found_and_batches_add_up(slope_s, fixed_s):
    model = learnt(line(slope_s, fixed_s))
    assert model.seconds(10.0) == pytest.approx(10 * slope_s + fixed_s, rel=0.05)
    assert model.seconds(1.0) == pytest.approx(slope_s + fixed_s, rel=0.15)
    assert model.seconds(100.0, 5) == pytest.approx(100 * slope_s + 5 * fixed_s, rel=0.15)


def test_nothing_is_known_before_the_first_batch():
    assert LatencyModel().seconds(10.0, 3) == 0
    assert LatencyModel().seconds(10.0, operation="text") == 0


def test_one_batch_gives_a_proportion():
    assert learnt([(2.0, 0.4)]).seconds(4.0) == pytest.approx(0.8)


def test_batches_of_one_size_keep_the_known_fixed_share():
    model = learnt(line(0.005, 0.02) + [(16.0, 0.1)] * 2000)
    assert model.seconds(16.0) == pytest.approx(0.1, rel=0.01)
    assert model.seconds(1.0) == pytest.approx(0.025, rel=0.25)


@pytest.mark.parametrize("wild_s", [0.0, 1e-6, 5.0, 1e6])
def test_one_wild_batch_moves_little(wild_s):
    model = learnt([*line(0.005, 0.02, 100), (8.0, wild_s)])
    for cost in (1.0, 8.0, 16.0):
        assert model.seconds(cost) == pytest.approx(0.005 * cost + 0.02, rel=0.15)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_change_for_good_is_followed(factor):
    model = learnt([*line(0.005, 0.02, 200), *line(0.005 * factor, 0.02 * factor, 24)])
    assert model.seconds(8.0) == pytest.approx(0.06 * factor, rel=0.5)


def test_a_slow_first_batch_is_outgrown():
    model = learnt([(1.0, 5.0), *line(0.005, 0.02, 32)])
    assert model.seconds(16.0) == pytest.approx(0.1, rel=0.5)


def test_operations_are_told_apart_and_an_unknown_one_takes_what_all_take():
    model = LatencyModel()
    for _ in range(10):
        model.observe("encode", cost=4.0, duration_s=0.4)
        model.observe("text", cost=4.0, duration_s=0.2)
    assert model.seconds(4.0, operation="encode") == pytest.approx(0.4)
    assert model.seconds(4.0, operation="text") == pytest.approx(0.2)
    assert model.seconds(4.0, operation="other") == model.seconds(4.0)
    assert 0.2 < model.seconds(4.0) < 0.4


@given(st.lists(st.tuples(COSTS, st.floats(0, 1e4)), max_size=20), COSTS, st.integers(0, 100))
def test_any_history_gives_a_sane_estimate(pairs, cost, batch_count):
    model = learnt(pairs)
    longest_s = max((duration_s for _, duration_s in pairs), default=0.0)
    least_cost = min((other for other, _ in pairs if other > 0), default=1.0)
    estimate_s = model.seconds(cost, batch_count)
    assert 0 <= estimate_s <= longest_s * (len(pairs) * (cost / least_cost) + batch_count + 1) * 1.01 + 1e-6
    assert model.seconds(cost + 1, batch_count) >= estimate_s
    assert model.seconds(cost, batch_count + 1) >= estimate_s


@given(st.floats(0, 1e9))
def test_the_delay_is_bounded(backlog_s):
    assert 0.05 <= retry_after_s(backlog_s) <= 30
