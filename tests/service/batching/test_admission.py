import asyncio
import heapq
import itertools
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.errors import DeadlineExpired, Overloaded
from service.batching.admission import Admission, AdmissionEvents, AdmissionLimits, Refusal
from service.batching.schedule import Schedule
from service.batching.work import Operation, Work
from service.claims import Claim, Lane

PLENTY = AdmissionLimits(images=10**6, bytes=10**12, pixels=10**12)


@dataclass
class Recorder:
    refusals: list = field(default_factory=list)
    held: tuple = (0, 0, 0)

    def admission_refused(self, reason):
        self.refusals.append(reason)

    def admitted_changed(self, *, image_count, size_bytes, pixel_count):
        self.held = (image_count, size_bytes, pixel_count)


@dataclass
class Desk:
    """An admission whose clock and estimates are set by hand."""

    limits: AdmissionLimits = PLENTY
    now_s: float = 100.0
    decode_wait_s: float = 0.0
    second_per_cost: float = 0.0
    events: Recorder = field(default_factory=Recorder)

    def __post_init__(self):
        self.admission = Admission(
            limits=self.limits,
            clock=lambda: self.now_s,
            events=self.events,
            engine_wait_s=lambda claim, cost: cost * self.second_per_cost,
            decode_wait_s=lambda claim: self.decode_wait_s,
        )

    def admit(self, *, left_s=None, size_bytes=10, pixel_count=100, cost=1.0, caller="a", lane=Lane.INTERACTIVE):
        deadline_s = None if left_s is None else self.now_s + left_s
        claim = Claim(caller=caller, lane=lane, deadline_s=deadline_s)
        return self.admission.admit(claim=claim, size_bytes=size_bytes, pixel_count=pixel_count, cost=cost)


def test_the_recorder_is_an_observer():
    assert isinstance(Recorder(), AdmissionEvents)


@pytest.mark.parametrize(
    ("limits", "reason", "setting"),
    [
        (AdmissionLimits(images=2, bytes=10**6, pixels=10**6), "queue_full", "PHOSPHENE_QUEUE_IMAGES"),
        (AdmissionLimits(images=100, bytes=29, pixels=10**6), "bytes", "PHOSPHENE_QUEUE_BYTES"),
        (AdmissionLimits(images=100, bytes=10**6, pixels=299), "pixels", "PHOSPHENE_QUEUE_PIXELS"),
    ],
)
def test_each_bound_refuses_and_room_given_back_is_room(limits, reason, setting):
    desk = Desk(limits)
    with desk.admit(), desk.admit():
        with pytest.raises(Overloaded, match=setting) as caught:
            desk.admit()
        assert 0.05 <= caught.value.retry_after_s <= 30
        assert desk.events.held == (2, 20, 200)
    assert desk.events.refusals == [reason]
    assert desk.events.held == (0, 0, 0)
    with desk.admit(), desk.admit():
        assert desk.admission.image_count == 2


def test_an_empty_service_takes_an_image_larger_than_its_limit():
    desk = Desk(AdmissionLimits(images=10, bytes=5, pixels=5))
    with desk.admit(size_bytes=50, pixel_count=50), pytest.raises(Overloaded):
        desk.admit(size_bytes=1, pixel_count=1)


def test_a_passed_deadline_is_told_apart_from_one_that_is_too_near():
    desk = Desk(second_per_cost=1.0)
    with pytest.raises(DeadlineExpired):
        desk.admit(left_s=0.0)
    with pytest.raises(Overloaded, match=r"about 1\.20 s and the deadline is in 0\.90 s"):
        desk.admit(left_s=0.9)
    assert desk.events.refusals == ["deadline"]
    with desk.admit(left_s=1.3), desk.admit():
        assert desk.admission.image_count == 2


def test_estimates_that_refuse_everybody_are_tried_after_a_second_with_nothing_in_hand():
    desk = Desk(second_per_cost=5.0)
    with pytest.raises(Overloaded, match="about"):
        desk.admit(left_s=1.0)
    desk.now_s += 1.0
    with desk.admit(left_s=1.0):
        # One finds out; the others wait for what it finds.
        with pytest.raises(Overloaded, match="about"):
            desk.admit(left_s=1.0)
        desk.now_s += 2.0
        with pytest.raises(Overloaded, match="about"):
            desk.admit(left_s=1.0)
    with pytest.raises(Overloaded, match="about"):
        desk.admit(left_s=1.0)
    desk.now_s += 1.0
    reserved = desk.admission.reserve(claim=Claim(caller="a"), size_bytes=10)
    claim = Claim(caller="a", deadline_s=desk.now_s + 1.0)
    with desk.admission.admit(claim=claim, size_bytes=10, pixel_count=100, cost=1.0, held=reserved):
        pass
    assert desk.events.refusals == [Refusal.DEADLINE] * 4


def test_what_is_being_decoded_counts_until_it_enters_the_queue():
    desk = Desk(second_per_cost=1.0)
    with desk.admit(cost=5.0) as first:
        with pytest.raises(Overloaded):
            desk.admit(left_s=5.0, caller="a")
        first.decoded()
        first.decoded()
        with desk.admit(left_s=5.0, caller="a"):
            pass


def test_waiting_for_a_decoder_counts():
    desk = Desk(decode_wait_s=2.0)
    with pytest.raises(Overloaded):
        desk.admit(left_s=2.1)
    with desk.admit(left_s=2.5):
        pass


def test_a_flood_of_one_caller_is_not_anothers_wait():
    desk = Desk(second_per_cost=0.01)
    for _ in range(200):
        desk.admit(caller="flood")
    with pytest.raises(Overloaded):
        desk.admit(left_s=1.0, caller="flood")
    with desk.admit(left_s=1.0, caller="other"):
        pass


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Lane),
            st.sampled_from("abc"),
            st.integers(0, 50),
            st.integers(0, 500),
            st.floats(0.1, 9),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_every_way_out_gives_everything_back(images):
    desk = Desk(AdmissionLimits(images=12, bytes=300, pixels=3000))
    inside = []
    for lane, caller, size_bytes, pixel_count, cost, leaves, is_decoded in images:
        try:
            admitted = desk.admit(lane=lane, caller=caller, size_bytes=size_bytes, pixel_count=pixel_count, cost=cost)
        except Overloaded:
            continue
        inside.append(admitted)
        assert desk.admission.image_count <= 12
        if is_decoded:
            admitted.decoded()
        if leaves:
            inside.remove(admitted)
            admitted.__exit__(None, None, None)
            admitted.__exit__(None, None, None)
    for admitted in inside:
        admitted.__exit__(ValueError, ValueError("gone"), None)
    assert desk.events.held == (0, 0, 0)
    assert desk.admission._coming.cost() == 0
    assert desk.admission._coming.count() == 0


# -- a whole service in simulated time: the real admission and the real schedule; decoders and device are durations


FIXED_S, IMAGE_S, BATCH = 0.020, 0.005, 16
CAPACITY_PER_S = BATCH / (FIXED_S + BATCH * IMAGE_S)


@dataclass
class Outcome:
    good: int = 0
    late: int = 0
    refused: int = 0
    good_at_s: list = field(default_factory=list)
    good_by_caller: dict = field(default_factory=dict)

    def goodput_per_s(self, duration_s):
        """Answers in time each second, from the end of the first second on."""
        return sum(1 < at_s <= duration_s for at_s in self.good_at_s) / (duration_s - 1)


class Service:
    """Decoders, a queue and a device in simulated time."""

    def __init__(self, *, decode_s, decoder_count, noise, seed, deadline_s, bulk_share=0.25):
        self.now_s, self._order, self._events = 0.0, itertools.count(), []
        self._decode_s, self._decoders_free_s = decode_s, [0.0] * decoder_count
        self._device_free_s, self._noise, self._random = 0.0, noise, random.Random(seed)
        self._deadline_s = deadline_s
        self.outcome = Outcome()
        self._operation = Operation("encode", lambda items: lambda: items)
        self._schedule = Schedule(batch_limit=BATCH, bulk_share=bulk_share, clock=lambda: self.now_s)
        self._schedule.latency.observe("encode", cost=1.0, duration_s=FIXED_S + IMAGE_S)
        self._loop = asyncio.get_running_loop()
        self._admission = Admission(
            limits=PLENTY,
            clock=lambda: self.now_s,
            events=Recorder(),
            engine_wait_s=self._schedule.answer_s,
            decode_wait_s=lambda claim: max(min(self._decoders_free_s) - self.now_s, 0.0),
            bulk_share=bulk_share,
        )

    def play(self, arrivals):
        """Serve requests of (time, caller, lane) until the last is answered or refused."""
        for at_s, caller, lane in arrivals:
            self._at(at_s, self._arrive, caller, lane)
        while self._events:
            self.now_s, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
            while self._schedule.can_launch():
                self._launch()
        return self.outcome

    def _at(self, at_s, act, *arguments):
        heapq.heappush(self._events, (at_s, next(self._order), act, arguments))

    def _arrive(self, caller, lane):
        claim = Claim(caller=caller, lane=lane, deadline_s=self.now_s + self._deadline_s)
        try:
            admitted = self._admission.admit(claim=claim, size_bytes=1, pixel_count=1, cost=1.0)
        except Overloaded:
            self.outcome.refused += 1
            return
        free_s = max(heapq.heappop(self._decoders_free_s), self.now_s) + self._decode_s
        heapq.heappush(self._decoders_free_s, free_s)
        self._at(free_s, self._decoded, admitted, claim)

    def _decoded(self, admitted, claim):
        admitted.decoded()
        self._schedule.put(Work(self._operation, admitted, claim, 1.0, self.now_s, self._loop.create_future()))

    def _launch(self):
        dropped = []
        flight = self._schedule.launch(dropped)
        for work in dropped:
            self._end(work)
        if flight is not None:
            taken_s = (FIXED_S + IMAGE_S * len(flight.works)) * self._random.uniform(1 - self._noise, 1 + self._noise)
            self._device_free_s = max(self.now_s, self._device_free_s) + taken_s
            self._at(self._device_free_s, self._land, flight)

    def _land(self, flight):
        self._schedule.answered(flight)
        for work in flight.works:
            self._end(work)

    def _end(self, work):
        work.item.__exit__(None, None, None)
        if self.now_s <= work.claim.deadline_s:
            self.outcome.good += 1
            self.outcome.good_at_s.append(self.now_s)
            by_caller = self.outcome.good_by_caller
            by_caller[work.claim.caller] = by_caller.get(work.claim.caller, 0) + 1
        else:
            self.outcome.late += 1


def poisson(rate_per_s, duration_s, *, seed, caller_count=40, bulk_every=0):
    chance, at_s, arrivals = random.Random(seed), 0.0, []
    while (at_s := at_s + chance.expovariate(rate_per_s)) < duration_s:
        number = chance.randrange(caller_count)
        lane = Lane.BULK if bulk_every and number % bulk_every == 0 else Lane.INTERACTIVE
        arrivals.append((at_s, f"caller {number}", lane))
    return arrivals


SHORT_S, LONG_S = 4.0, 20.0
_slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("overload", "bulk_every", "noise", "duration_s"),
    [
        (2.0, 3, 0.2, SHORT_S),
        pytest.param(1.3, 0, 0.0, LONG_S, marks=_slow),
        pytest.param(1.3, 2, 0.2, LONG_S, marks=_slow),
        pytest.param(2.0, 0, 0.2, LONG_S, marks=_slow),
        pytest.param(5.0, 4, 0.0, LONG_S, marks=_slow),
    ],
)
async def test_overload_leaves_the_goodput_near_the_capacity(overload, bulk_every, noise, duration_s):
    arrivals = poisson(overload * CAPACITY_PER_S, duration_s, seed=1, bulk_every=bulk_every)
    service = Service(decode_s=0.01, decoder_count=8, noise=noise, seed=2, deadline_s=1.0)
    outcome = service.play(arrivals)
    assert outcome.goodput_per_s(duration_s) >= 0.9 * CAPACITY_PER_S
    assert outcome.good + outcome.late + outcome.refused == len(arrivals)
    assert outcome.refused > 0
    assert outcome.late <= 0.15 * outcome.good


async def test_overloaded_decoders_leave_the_goodput_near_theirs():
    capacity_per_s = 80
    arrivals = poisson(2 * capacity_per_s, SHORT_S, seed=3)
    outcome = Service(decode_s=0.05, decoder_count=4, noise=0.1, seed=4, deadline_s=1.0).play(arrivals)
    assert outcome.goodput_per_s(SHORT_S) >= 0.9 * capacity_per_s


@pytest.mark.parametrize("load", [0.1, 0.8])
async def test_without_overload_nothing_is_refused(load):
    arrivals = poisson(load * CAPACITY_PER_S, SHORT_S, seed=5, bulk_every=4)
    outcome = Service(decode_s=0.01, decoder_count=8, noise=0.2, seed=6, deadline_s=1.0).play(arrivals)
    assert (outcome.refused, outcome.late) == (0, 0)


async def test_a_flood_does_not_take_a_modest_callers_service():
    modest = poisson(10, SHORT_S, seed=7, caller_count=1)
    flood = [(at_s, "flood", lane) for at_s, _, lane in poisson(2 * CAPACITY_PER_S, SHORT_S, seed=8)]
    service = Service(decode_s=0.001, decoder_count=8, noise=0.1, seed=9, deadline_s=1.0)
    outcome = service.play(modest + flood)
    assert outcome.good_by_caller["caller 0"] >= 0.95 * len(modest)
    assert outcome.goodput_per_s(SHORT_S) >= 0.9 * CAPACITY_PER_S


def test_what_is_decoded_does_not_wait_for_decoders():
    desk = Desk(decode_wait_s=10.0, second_per_cost=0.1)
    admitted = dict(claim=Claim(caller="a", deadline_s=101.0), size_bytes=0, pixel_count=0, cost=1.0)
    with pytest.raises(Overloaded):
        desk.admission.admit(**admitted)
    with desk.admission.admit(**admitted, is_decoded=True):
        assert desk.admission.image_count == 1


@pytest.mark.parametrize("limit", ["images", "bytes", "pixels"])
def test_a_flood_of_bulk_leaves_room_for_whoever_waits(limit):
    limits = replace(PLENTY, **{limit: {"images": 4, "bytes": 40, "pixels": 400}[limit]})
    desk = Desk(limits=limits)
    bulk = [desk.admit(lane=Lane.BULK, caller=caller) for caller in "xyz"]
    with pytest.raises(Overloaded, match="3 bulk images|bulk images of 30 bytes|bulk images of 300 pixels"):
        desk.admit(lane=Lane.BULK)
    with desk.admit(caller="b"):
        with pytest.raises(Overloaded):
            desk.admit(caller="b")
        assert desk.events.held == (4, 40, 400)
    for admitted in bulk:
        with admitted:
            pass
    assert desk.events.held == (0, 0, 0)
    # Interactive work may have all of the room, and bulk what it leaves.
    for caller in "wxyz":
        desk.admit(caller=caller)
    with pytest.raises(Overloaded):
        desk.admit(lane=Lane.BULK)
