"""What one caller may have in hand, and what a request counts for that waits for another's image."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import Overloaded
from service.batching.shares import Shares, share_of
from service.claims import Claim, Lane
from tests.service.batching.test_admission import PLENTY, Desk

BOUNDS = {"images": 16, "bytes": 160, "pixels": 1600}
NAMES = {
    "images": "in hand, the limit for one caller",
    "bytes": "the limit for one caller is",
    "pixels": "the limit for one caller is",
}


def admitted_until_refused(desk, **changes):
    """How many images are admitted, and why the next one is not."""
    count = 0
    while True:
        try:
            desk.admit(**changes)
        except Overloaded as refusal:
            return count, str(refusal)
        count += 1


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("lane", "own", "share"), [(Lane.INTERACTIVE, 12, "three quarters"), (Lane.BULK, 9, "nine")])
def test_a_flood_by_one_caller_leaves_room_for_the_others(bound, lane, own, share):
    desk = Desk(replace(PLENTY, **{bound: BOUNDS[bound]}))
    count, refusal = admitted_until_refused(desk, caller="flood", lane=lane)
    assert count == own
    assert NAMES[bound] in refusal
    assert f"({share}" in refusal
    assert f"PHOSPHENE_QUEUE_{bound.upper()})" in refusal
    assert admitted_until_refused(desk, caller="other", lane=lane)[0] == (4 if lane is Lane.INTERACTIVE else 3)


def test_both_lanes_of_a_caller_count_together():
    desk = Desk(replace(PLENTY, images=16))
    assert admitted_until_refused(desk, caller="flood", lane=Lane.BULK)[0] == 9
    assert admitted_until_refused(desk, caller="flood")[0] == 3
    for lane in Lane:
        with desk.admit(caller="other", lane=lane):
            pass


@pytest.mark.parametrize(("limit", "own"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4)])
def test_a_small_limit_still_serves_a_lone_caller(limit, own):
    assert admitted_until_refused(Desk(replace(PLENTY, images=limit)))[0] == own
    assert admitted_until_refused(Desk(replace(PLENTY, images=limit)), lane=Lane.BULK)[0] == share_of(own)


def test_the_only_image_of_a_caller_is_bounded_by_the_room_alone():
    desk = Desk(replace(PLENTY, bytes=100))
    desk.admit(caller="a", size_bytes=10)
    desk.admit(caller="b", size_bytes=89)
    with pytest.raises(Overloaded, match="the limit is 100 "):
        desk.admit(caller="c", size_bytes=2)
    with pytest.raises(Overloaded, match="the limit for one caller is 75 "):
        desk.admit(caller="b", size_bytes=1)


@settings(max_examples=200)
@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(
            st.builds(Claim, caller=st.sampled_from("abc"), lane=st.sampled_from(Lane)),
            st.integers(0, 20),
            st.booleans(),
        ),
        max_size=40,
    ),
)
def test_shares_agree_with_a_plain_count(limit, steps):
    shares, held = Shares(limit), []

    def sum_of(of):
        return sum(amount for claim, amount in held if of(claim))

    for claim, amount, is_leaving in steps:
        if is_leaving and held:
            shares.give_back(*held.pop(0))
            continue
        bounds = [
            (sum_of(lambda other: True), limit),
            (sum_of(lambda other, claim=claim: other.caller == claim.caller), share_of(limit)),
        ]
        if claim.lane is Lane.BULK:
            bounds += [
                (sum_of(lambda other: other.lane is Lane.BULK), share_of(limit)),
                (sum_of(lambda other, claim=claim: other == claim), share_of(share_of(limit))),
            ]
        fits = all(not now or now + amount <= most for now, most in bounds)
        assert (shares.excess(claim, amount) is None) is fits
        if fits:
            shares.take(claim, amount)
            held.append((claim, amount))
        assert shares.total == sum_of(lambda other: True)
    for claim, amount in held:
        shares.give_back(claim, amount)
    assert (shares.total, shares._callers, shares._bulk_callers) == (0, {}, {})


def test_who_follows_counts_as_an_image_with_its_bytes_and_costs_nothing():
    desk = Desk(replace(PLENTY, images=4), second_per_cost=1.0)
    claim = Claim(caller="a")
    with desk.admission.follow(claim=claim, size_bytes=7) as held:
        assert desk.events.held == (1, 7, 0)
        assert desk.admission._coming.cost() == 0
        with desk.admission.follow(claim=claim, size_bytes=7), desk.admission.follow(claim=claim, size_bytes=7):
            with pytest.raises(Overloaded, match="3 images are in hand, the limit for one caller"):
                desk.admission.follow(claim=claim, size_bytes=7)
            assert desk.admission.reserve(claim=claim, size_bytes=7) is None
        held.give_back()
        assert desk.events.held == (0, 0, 0)
    assert desk.events.held == (0, 0, 0)
    assert desk.events.refusals == ["queue_full"]


def test_room_that_was_reserved_becomes_the_image_s_own():
    desk = Desk(replace(PLENTY, images=1, pixels=100))
    claim = Claim(caller="a")
    held = desk.admission.reserve(claim=claim, size_bytes=7)
    with pytest.raises(Overloaded):
        desk.admission.admit(claim=claim, size_bytes=7, pixel_count=1, cost=1.0)
    with desk.admission.admit(claim=claim, size_bytes=7, pixel_count=5, cost=1.0, held=held):
        assert desk.events.held == (1, 7, 5)
        held.give_back()
        assert desk.events.held == (1, 7, 5)
    assert desk.events.held == (0, 0, 0)


def test_room_that_was_reserved_is_no_room_for_pixels():
    desk = Desk(replace(PLENTY, pixels=100))
    claim = Claim(caller="a")
    other = desk.admission.admit(claim=Claim(caller="b"), size_bytes=1, pixel_count=60, cost=1.0)
    mine = desk.admission.admit(claim=claim, size_bytes=1, pixel_count=1, cost=1.0)
    held = desk.admission.reserve(claim=claim, size_bytes=7)
    with pytest.raises(Overloaded, match="pixels are in hand"):
        desk.admission.admit(claim=claim, size_bytes=7, pixel_count=50, cost=1.0, held=held)
    assert desk.events.held == (3, 9, 61)
    for each in (held, mine, other):
        each.__exit__(None, None, None)
    assert desk.events.held == (0, 0, 0)
