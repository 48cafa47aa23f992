from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.batching.fair_queue import FairQueue, Ledger
from service.claims import Claim, Lane

LANES = st.sampled_from(list(Lane))
CALLERS = st.sampled_from(["a", "b", "c"])
COSTS = st.sampled_from([1.0, 2.0, 3.5])


def claim(caller="a", lane=Lane.INTERACTIVE):
    return Claim(caller=caller, lane=lane)


class AnyUse(RuleBasedStateMachine):
    """Against a list: nothing is lost, doubled or reordered within a caller's lane, and the sums are right."""

    def __init__(self):
        super().__init__()
        self.queue = FairQueue(bulk_share=0.25)
        self.waiting = []
        self.number = 0

    @rule(lane=LANES, caller=CALLERS, cost=COSTS)
    def put(self, lane, caller, cost):
        self.number += 1
        self.queue.put(self.number, claim=claim(caller, lane), cost=cost)
        self.waiting.append((self.number, caller, lane, cost))

    def forget(self, taken):
        match = next(row for row in self.waiting if row[0] == taken)
        self.waiting.remove(match)
        return match

    @rule()
    def take(self):
        first = self.queue.peek()
        taken = self.queue.take()
        assert taken == first
        if taken is None:
            assert not self.waiting
            return
        _, caller, lane, _ = self.forget(taken)
        assert all(taken < number for number, other, track, _ in self.waiting if (other, track) == (caller, lane))

    @rule(modulus=st.integers(2, 4))
    def take_matching(self, modulus):
        taken = self.queue.take_matching(lambda number: number % modulus == 0)
        if taken is None:
            assert not any(row[0] % modulus == 0 for row in self.waiting)
        else:
            assert taken % modulus == 0
            self.forget(taken)

    @rule(data=st.data())
    def remove(self, data):
        number = data.draw(st.integers(0, self.number))
        is_waiting = any(row[0] == number for row in self.waiting)
        assert self.queue.remove(number) is is_waiting
        if is_waiting:
            self.forget(number)

    @rule()
    def drain(self):
        assert self.queue.drain() == [row[0] for row in self.waiting]
        self.waiting.clear()

    @invariant()
    def the_sums_are_right(self):
        assert len(self.queue) == self.queue.count() == len(self.waiting)
        assert self.queue.oldest() == (self.waiting[0][0] if self.waiting else None)
        for lane in Lane:
            costs = [cost for _, _, track, cost in self.waiting if track is lane]
            assert self.queue.count(lane) == len(costs)
            assert self.queue.cost(lane) == pytest.approx(sum(costs), abs=1e-9)
        assert self.waiting or self.queue.cost() == 0

    def teardown(self):
        taken = [self.queue.take() for _ in self.waiting]
        assert sorted(taken) == sorted(row[0] for row in self.waiting)
        assert self.queue.take() is None


AnyUse.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAnyUse = AnyUse.TestCase


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 8), min_size=2, max_size=5), st.integers(10, 30))
def test_callers_that_always_wait_get_equal_cost(costs, turn_count):
    queue, served = FairQueue(bulk_share=0.0), Counter()
    for caller, cost in enumerate(costs):
        for number in range(turn_count):
            queue.put((caller, number), claim=claim(str(caller)), cost=cost)
    while all((caller, turn_count - 1) in queue for caller in range(len(costs))):
        caller, _ = queue.take()
        served[caller] += costs[caller]
    assert max(served.values()) - min(served[caller] for caller in range(len(costs))) <= 2 * max(costs)


@settings(max_examples=30)
@given(st.floats(0, 0.9), st.floats(0.5, 4), st.floats(0.5, 4))
def test_bulk_gets_its_share_of_cost_while_both_lanes_wait(bulk_share, interactive_cost, bulk_cost):
    queue, served = FairQueue(bulk_share=bulk_share), Counter()
    for number in range(60):
        queue.put((Lane.INTERACTIVE, number), claim=claim("a", Lane.INTERACTIVE), cost=interactive_cost)
        queue.put((Lane.BULK, number), claim=claim("b", Lane.BULK), cost=bulk_cost)
    while queue.count(Lane.BULK) and queue.count(Lane.INTERACTIVE):
        lane, _ = queue.take()
        served[lane] += bulk_cost if lane is Lane.BULK else interactive_cost
        total = served.total()
        assert abs(served[Lane.BULK] - bulk_share * total) <= interactive_cost + bulk_cost
    if bulk_share == 0:
        assert served[Lane.BULK] == 0


def test_a_lane_alone_is_served_whatever_its_share():
    queue = FairQueue(bulk_share=0.0)
    for number in range(3):
        queue.put(number, claim=claim(lane=Lane.BULK), cost=1.0)
    assert [queue.take() for _ in range(4)] == [0, 1, 2, None]


def test_idleness_saves_up_nothing():
    queue = FairQueue(bulk_share=0.0)
    for number in range(30):
        queue.put(("busy", number), claim=claim("busy"), cost=1.0)
    for _ in range(15):
        queue.take()
    for number in range(15):
        queue.put(("fresh", number), claim=claim("fresh"), cost=1.0)
    served = Counter(queue.take()[0] for _ in range(10))
    assert abs(served["busy"] - served["fresh"]) <= 2


def test_asking_for_one_thing_at_a_time_sheds_no_debt():
    queue, served = FairQueue(bulk_share=0.0), Counter()
    for number in range(100):
        queue.put(("many", number), claim=claim("many"), cost=1.0)
    number = 0
    queue.put(("dear", number), claim=claim("dear"), cost=5.0)
    for _ in range(60):
        caller, _ = queue.take()
        served[caller] += 5 if caller == "dear" else 1
        if caller == "dear":
            number += 1
            queue.put(("dear", number), claim=claim("dear"), cost=5.0)
    assert abs(served["dear"] - served["many"]) <= 10


def test_a_stream_of_new_callers_starves_nobody():
    queue = FairQueue(bulk_share=0.0)
    for number in range(3):
        queue.put(("old", number), claim=claim("old"), cost=1.0)
    for number in range(5):
        queue.put((f"early {number}", 0), claim=claim(f"early {number}"), cost=1.0)
    taken = []
    for number in range(40):
        queue.put((f"new {number}", 0), claim=claim(f"new {number}"), cost=1.0)
        taken.append(queue.take()[0])
    assert taken.count("old") == 3


def test_callers_come_and_go_without_leaving_anything_behind():
    queue = FairQueue(bulk_share=0.0)
    queue.put("stays", claim=claim("stays"), cost=1.0)
    for number in range(1000):
        queue.put(number, claim=claim(f"caller {number}"), cost=1.0)
        queue.remove(number)
    track = queue._tracks[Lane.INTERACTIVE]
    assert len(track._callers) == 1
    assert len(track._turns) < 200


def test_who_is_passed_over_keeps_the_turn():
    queue = FairQueue(bulk_share=0.25)
    queue.put("image 1", claim=claim("a"), cost=1.0)
    queue.put("text 1", claim=claim("b"), cost=1.0)
    queue.put("image 2", claim=claim("c"), cost=1.0)
    queue.put("text 2", claim=claim("d"), cost=1.0)
    assert queue.take_matching(lambda entry: entry.startswith("text")) == "text 1"
    assert queue.take_matching(lambda entry: entry.startswith("text")) == "text 2"
    assert queue.take_matching(lambda entry: entry.startswith("text")) is None
    assert [queue.take(), queue.take()] == ["image 1", "image 2"]


@pytest.mark.parametrize("cost", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cost_that_is_no_cost_is_refused(cost):
    with pytest.raises(ValueError, match="positive"):
        FairQueue(bulk_share=0.25).put("x", claim=claim(), cost=cost)


def test_an_entry_waits_once():
    queue = FairQueue(bulk_share=0.25)
    queue.put("x", claim=claim(), cost=1.0)
    with pytest.raises(ValueError, match="already"):
        queue.put("x", claim=claim("b"), cost=1.0)


@pytest.mark.parametrize("bulk_share", [-0.1, 0.91, float("nan")])
def test_a_share_that_leaves_nothing_for_the_other_lane_is_refused(bulk_share):
    with pytest.raises(ValueError, match="bulk_share"):
        FairQueue(bulk_share=bulk_share)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(LANES, CALLERS, st.floats(0.5, 3)), max_size=25),
    LANES,
    st.sampled_from(["a", "b", "c", "new"]),
    st.floats(0.5, 3),
    st.sampled_from([0.0, 0.25, 0.5]),
)
def test_the_cost_ahead_is_about_what_is_served_before(rows, lane, caller, cost, bulk_share):
    queue = FairQueue(bulk_share=bulk_share)
    for number, (track, other, weight) in enumerate(rows):
        queue.put(number, claim=claim(other, track), cost=weight)
    expected = queue.ledger.cost_ahead(claim(caller, lane), cost)
    assert expected <= queue.cost() + 1e-9
    queue.put("new", claim=claim(caller, lane), cost=cost)
    ahead = 0.0
    while (taken := queue.take()) != "new":
        ahead += rows[taken][2]
    # Nothing that is indivisible is served in part: one piece of each caller, across the shares of the lanes.
    shares = {Lane.INTERACTIVE: 1 - bulk_share, Lane.BULK: bulk_share}
    slack = (3 * 3 + 3) / shares[lane] + 3 if shares[lane] else 12
    assert abs(ahead - expected) <= slack + 1e-9


def test_a_ledger_forgets_what_is_subtracted():
    ledger = Ledger(bulk_share=0.25)
    for weight in (0.1, 0.2, 0.3):
        ledger.add(claim("a"), weight)
    ledger.add(claim("b", Lane.BULK), 1.0)
    for weight in (0.1, 0.2, 0.3):
        ledger.subtract(claim("a"), weight)
    assert (ledger.cost(Lane.INTERACTIVE), ledger.count(Lane.INTERACTIVE)) == (0.0, 0)
    assert (ledger.cost(), ledger.count()) == (1.0, 1)
    assert ledger.cost_ahead(claim("a"), 1.0) == pytest.approx(1 / 3)
    assert ledger.lane_cost_ahead(Lane.BULK) == 1.0
