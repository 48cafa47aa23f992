"""Who waits for whom when a replica leaves."""

import asyncio
from contextlib import ExitStack

import pytest

from phosphene.errors import Unavailable
from service.calls_in_hand import CallsInHand


async def steps():
    """Until every task has come as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_replica_leaves_once_every_call_is_answered_or_rests():
    calls = CallsInHand()
    with ExitStack() as open_calls:
        one, other = ExitStack(), ExitStack()
        open_calls.push(one), open_calls.push(other)
        one.enter_context(calls.take())
        other.enter_context(calls.take())
        calls.rest("other")
        leaving = asyncio.create_task(calls.leave())
        await steps()
        assert not leaving.done()
        calls.wake("other")
        one.close()
        await steps()
        assert not leaving.done()
        with pytest.raises(Unavailable, match="shutting down"), calls.take():
            pass
        calls.rest("other")
        await asyncio.wait_for(leaving, 10)
        calls.wake("other")


async def test_nothing_in_hand_is_nothing_to_wait_for():
    await asyncio.wait_for(CallsInHand().leave(), 10)
