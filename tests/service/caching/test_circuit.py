from hypothesis import given
from hypothesis import strategies as st

from service.caching.circuit import PACE_COUNT, SLOW_COUNT, Circuit, CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def circuit(failure_limit=5):
    states = []
    return Circuit(failure_limit=failure_limit, on_change=states.append), states


def test_opens_after_failures_in_a_row_and_not_before():
    breaker, states = circuit(failure_limit=3)
    breaker.probing()
    breaker.probed(is_well=True)
    for answer in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        answer()
    assert breaker.is_closed
    breaker.failed()
    assert states == [HALF_OPEN, CLOSED, OPEN]


def test_only_a_probe_closes_it():
    breaker, _ = circuit()
    breaker.succeeded()
    assert breaker.state is OPEN
    breaker.probing()
    breaker.succeeded()
    breaker.failed()
    assert breaker.state is HALF_OPEN
    breaker.probed(is_well=False)
    assert breaker.state is OPEN


def closed():
    breaker, states = circuit()
    breaker.probed(is_well=True)
    return breaker, states


def test_opens_when_most_answers_are_slow_though_none_fails():
    breaker, states = closed()
    for number in range(SLOW_COUNT):
        assert breaker.is_closed
        breaker.paced(is_slow=True)
        breaker.succeeded()
        assert breaker.is_closed is (number < SLOW_COUNT - 1)
    assert states == [CLOSED, OPEN]
    assert "slow" in breaker.reason


def test_stays_closed_while_some_answers_are_slow_however_many_come():
    breaker, states = closed()
    for _ in range(100):
        for number in range(PACE_COUNT):
            breaker.paced(is_slow=number < SLOW_COUNT - 1)
    assert states == [CLOSED]


def test_what_was_slow_before_is_forgotten_when_it_closes_again():
    breaker, _ = closed()
    for _ in range(SLOW_COUNT - 1):
        breaker.paced(is_slow=True)
    breaker.probing()
    breaker.paced(is_slow=True)
    breaker.probed(is_well=True)
    breaker.paced(is_slow=True)
    assert breaker.is_closed


def test_the_reason_is_that_of_the_last_opening():
    breaker, _ = closed()
    for _ in range(SLOW_COUNT):
        breaker.paced(is_slow=True)
    breaker.probed(is_well=True)
    for _ in range(5):
        breaker.failed()
    assert breaker.reason == "5 failures in a row"


@given(
    st.integers(1, 6),
    st.lists(st.sampled_from(["failed", "succeeded", "probing", "well", "ill"])),
)
def test_agrees_with_a_plain_reference(failure_limit, steps):
    breaker, states = circuit(failure_limit)
    state, in_a_row, told = OPEN, 0, []
    for step in steps:
        before = state
        match step:
            case "succeeded":
                breaker.succeeded()
                in_a_row = 0
            case "failed":
                breaker.failed()
                if state is CLOSED:
                    in_a_row += 1
                    state = OPEN if in_a_row == failure_limit else CLOSED
            case "probing":
                breaker.probing()
                state = HALF_OPEN
            case _:
                breaker.probed(is_well=step == "well")
                state = CLOSED if step == "well" else OPEN
        if step in ("probing", "well", "ill"):
            in_a_row = 0
        if state is not before:
            told.append(state)
        assert breaker.state is state
    assert states == told
