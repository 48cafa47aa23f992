"""How many items of a stream are under way: the window's count, what they hold, and a lone one always."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from service.stream_window import StreamWindow, UnreadBudget


def begins(window, expected_bytes):
    """Whether an item may begin at once."""
    step = window.begin(expected_bytes)
    try:
        step.send(None)
    except StopIteration:
        return True
    finally:
        step.close()
    return False


async def test_small_answers_fill_the_window():
    window = StreamWindow(3, limit_bytes=100)
    assert [begins(window, 1) for _ in range(4)] == [True, True, True, False]
    window.made(1, 2)
    assert not begins(window, 1)
    window.read(2)
    assert begins(window, 1)


async def test_a_lone_item_begins_however_large():
    window = StreamWindow(3, limit_bytes=100)
    assert begins(window, 1000)
    assert not begins(window, 1)


async def test_an_item_counts_as_much_as_the_latest_answers_had():
    window = StreamWindow(9, limit_bytes=100)
    assert begins(window, 1)
    window.made(1, 40)
    assert begins(window, 1)
    # 40 unread, 40 expected.
    assert window.held_bytes == 80
    assert not begins(window, 1)
    window.read(40)
    assert begins(window, 1)


async def test_one_large_answer_is_forgotten():
    window = StreamWindow(64, limit_bytes=1000)
    for size_bytes in (900, *(1,) * 60):
        assert begins(window, 1)
        window.made(window.held_bytes, size_bytes)
        window.read(size_bytes)
    assert [begins(window, 1) for _ in range(64)] == [True] * 64


async def test_streams_share_what_answers_may_hold_and_no_caller_keeps_the_others_out():
    budget = UnreadBudget(100)
    first, second = (StreamWindow(9, budget=budget, caller="a") for _ in range(2))
    other = StreamWindow(9, budget=budget, caller="b")
    assert begins(first, 30)
    # A stream with nothing under way waits for nobody.
    assert begins(second, 30)
    assert not begins(second, 1)
    assert [begins(other, 20) for _ in range(3)] == [True, True, False]
    waiting = asyncio.create_task(second.begin(5))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.close()
    async with asyncio.timeout(10):
        assert await waiting == 5
    assert budget.held_bytes == 30 + 5 + 40
    for window in (second, other):
        window.close()
    assert budget.held_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30), st.integers(1, 5))
def test_every_item_begins_in_the_end_and_nothing_is_left(sizes, item_limit):
    async def all_items():
        window = StreamWindow(item_limit, limit_bytes=60)
        most = under_way = 0

        async def item(expected_bytes, size_bytes):
            nonlocal most, under_way
            kept_bytes = await window.begin(expected_bytes)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            window.made(kept_bytes, size_bytes)
            await asyncio.sleep(0)
            under_way -= 1
            window.read(size_bytes)

        ended = [asyncio.create_task(item(*size)) for size in sizes]
        async with asyncio.timeout(30):
            await asyncio.gather(*ended)
        assert most <= item_limit
        assert window.held_bytes == 0

    asyncio.run(all_items())
