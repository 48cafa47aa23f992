from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from service.caching.local_cache import ENTRY_BYTES, LocalCache

KEYS = st.integers(0, 9).map(lambda number: bytes([number]))
STEPS = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=400)), max_size=60)


@given(STEPS, st.integers(0, 3000))
def test_agrees_with_a_plain_reference(steps, limit_bytes):
    cache, reference = LocalCache(limit_bytes=limit_bytes), OrderedDict()

    def held_bytes():
        return sum(len(value) + ENTRY_BYTES for value in reference.values())

    for key, value in steps:
        if value is None:
            assert cache.get(key) == reference.get(key)
            if key in reference:
                reference.move_to_end(key)
            continue
        cache.put(key, value)
        reference.pop(key, None)
        if len(value) + ENTRY_BYTES <= limit_bytes:
            reference[key] = value
            while held_bytes() > limit_bytes:
                reference.popitem(last=False)
        assert cache.held_bytes == held_bytes() <= limit_bytes
        assert len(cache) == len(reference)
    for key, value in reference.items():
        assert cache.get(key) == value


def test_a_limit_of_nothing_keeps_nothing():
    cache = LocalCache(limit_bytes=0)
    cache.put(b"key", b"")
    assert cache.get(b"key") is None
