import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.envelope import OVERHEAD_BYTES, unwrap, wrap


def digest(text):
    return hashlib.sha256(text.encode()).digest()


@given(st.binary(max_size=2000), st.text())
def test_gives_back_what_was_put_in(payload, key):
    data = wrap(digest(key), payload)
    assert unwrap(digest(key), data) == payload
    assert len(data) == len(payload) + OVERHEAD_BYTES


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(64))])
def test_every_flipped_bit_is_seen(payload):
    data = wrap(digest("key"), payload)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert unwrap(digest("key"), bytes(flipped)) is None


@given(st.binary(max_size=200), st.text(), st.text())
def test_another_keys_value_is_none(payload, key, other):
    assert (unwrap(digest(other), wrap(digest(key), payload)) == payload) is (key == other)


@given(st.binary(min_size=1, max_size=200), st.binary(min_size=1, max_size=20), st.data())
def test_a_cut_or_lengthened_value_is_none(payload, more, data):
    whole = wrap(digest("key"), payload)
    assert unwrap(digest("key"), whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    assert unwrap(digest("key"), whole + more) is None


@given(st.binary(max_size=200))
def test_any_other_bytes_are_none(data):
    assert unwrap(digest("key"), data) is None
