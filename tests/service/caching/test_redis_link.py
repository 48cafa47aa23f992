"""The link against wires that a test plays by hand."""

import asyncio

import pytest

from service.caching.redis_link import Answered, LinkBounds, NotAsked, RedisLink, Unanswered
from service.caching.redis_wire import LinkLost, RedisWire, ServerError


class Wire(RedisWire):
    """A wire whose other end is the test."""

    def __init__(self):
        self.sent = []
        self.answers = asyncio.Queue()

    def pack(self, *words):
        return [b" ".join(str(word).encode() if not isinstance(word, bytes) else word for word in words)]

    async def send(self, packed):
        self.sent += packed

    async def receive(self):
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(link):
    return link.ask(b"script", keys=(), arguments=())


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def wire():
    return Wire()


async def serving(link):
    task = asyncio.create_task(link.run())
    await settle()
    return task


async def ended(task):
    """Why a link ended."""
    with pytest.raises(ExceptionGroup) as group:
        async with asyncio.timeout(20):
            await task
    assert group.group_contains(LinkLost)
    return str(group.value.exceptions[0])


async def stopped(task):
    task.cancel()
    await asyncio.wait([task])


async def test_questions_are_answered_in_their_order_and_errors_are_answers(wire):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=20.0))
    task = await serving(link)
    first, second, third = ask(link), ask(link), ask(link)
    for answer in ([b"1", b"one"], ServerError("ERR no"), [b"3", b"three"]):
        wire.answers.put_nowait(answer)
    assert await first == Answered([b"one"])
    assert await second == Unanswered("ERR no")
    assert await third == Answered([b"three"])
    await link.quiet()
    await stopped(task)


async def test_an_asker_who_leaves_disturbs_nobody(wire):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=20.0))
    task = await serving(link)
    first, second = ask(link), ask(link)
    first.cancel()
    wire.answers.put_nowait([b"1", b"one"])
    wire.answers.put_nowait([b"2", b"two"])
    assert await second == Answered([b"two"])
    await stopped(task)


@pytest.mark.parametrize(
    "answer",
    [[b"2", b"two"], [1, b"one"], [], b"1", None, LinkLost("reset")],
    ids=["another's number", "a number of another kind", "an empty list", "no list", "nothing", "a lost wire"],
)
async def test_a_stream_out_of_step_ends_the_link_and_fails_who_waits(wire, answer):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=20.0))
    task = await serving(link)
    waiting = [ask(link), ask(link)]
    wire.answers.put_nowait(answer)
    await ended(task)
    assert [type(await each) for each in waiting] == [Unanswered, Unanswered]
    assert await ask(link) == NotAsked("the connection is lost", is_failure=True)


async def test_an_answer_that_nobody_asked_for_ends_the_link(wire):
    task = await serving(RedisLink(wire, bounds=LinkBounds(patience_s=20.0)))
    wire.answers.put_nowait(ServerError("ERR max number of clients reached"))
    assert "without a question" in await ended(task)


async def test_one_overdue_question_keeps_all_others_from_waiting(wire):
    heard = []
    link = RedisLink(wire, bounds=LinkBounds(patience_s=0.01, lost_s=20.0), on_overdue=lambda: heard.append(1))
    task = await serving(link)
    waiting = [ask(link), ask(link)]
    assert [type(await each) for each in waiting] == [Unanswered, Unanswered]
    assert heard == [1]
    late = ask(link)
    assert late.done()
    assert late.result() == NotAsked("an earlier question is overdue", is_failure=True)
    assert len(wire.sent) == 2
    wire.answers.put_nowait([b"1"])
    wire.answers.put_nowait([b"2"])
    await link.quiet()
    again = ask(link)
    wire.answers.put_nowait([b"3", b"three"])
    assert await again == Answered([b"three"])
    await stopped(task)


async def test_a_question_after_one_that_was_overdue_has_the_same_patience(wire):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=0.01, lost_s=3600.0))
    task = await serving(link)
    for number in (b"1", b"2", b"3"):
        async with asyncio.timeout(20):
            assert await ask(link) == Unanswered("no answer within 0.01 s")
        wire.answers.put_nowait([number, b"late"])
        await link.quiet()
    await stopped(task)


async def test_a_question_asked_while_a_look_is_due_is_asked_like_any_other(wire):
    # So short a patience has the first look due as soon as the question is asked.
    link = RedisLink(wire, bounds=LinkBounds(patience_s=0.002, lost_s=3600.0))
    task = await serving(link)
    waiting = [ask(link) for _ in range(3)]
    assert [await each for each in waiting] == [Unanswered("no answer within 0.002 s")] * 3
    await stopped(task)


async def heard(told, count):
    """Wait for so many verdicts; the bound is against hanging."""
    async with asyncio.timeout(20):
        while len(told) < count:
            await asyncio.sleep(0.001)
    return told


async def test_the_pace_of_a_question_that_is_answered_is_not_slow(wire):
    told = []
    link = RedisLink(wire, bounds=LinkBounds(patience_s=0.2), on_pace=told.append)
    task = await serving(link)
    for number in (b"1", b"2"):
        answer = ask(link)
        wire.answers.put_nowait([number])
        await answer
        assert await heard(told, int(number)) == [False] * int(number)
    await stopped(task)


async def test_the_pace_of_a_question_that_waits_is_slow_before_it_is_overdue_and_told_once(wire):
    told = []
    link = RedisLink(wire, bounds=LinkBounds(patience_s=1.0), on_pace=lambda is_slow: told.append((is_slow, late())))
    task = await serving(link)
    waiting = [ask(link)]
    await settle()
    waiting.append(ask(link))

    def late():
        return [each.done() for each in waiting]

    assert await heard(told, 1) == [(True, [False, False])]
    # Every number up to the one that is looked at was asked before it: an answer to the later one is no verdict.
    wire.answers.put_nowait([b"1"])
    wire.answers.put_nowait([b"2"])
    await link.quiet()
    assert len(told) == 1
    await stopped(task)


async def test_an_answer_says_how_long_it_took(wire):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=20.0))
    task = await serving(link)
    begun_s = asyncio.get_running_loop().time()
    answer = ask(link)
    await asyncio.sleep(0.02)  # this loop's clock may tick no oftener than once in a millisecond
    wire.answers.put_nowait([b"1", b"one"])
    after_s = (await answer).after_s
    assert 0.01 <= after_s <= asyncio.get_running_loop().time() - begun_s
    await stopped(task)


async def test_a_silent_link_is_lost(wire):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=0.01, lost_s=0.01))
    task = await serving(link)
    ask(link)
    assert "no word for" in await ended(task)


@pytest.mark.parametrize("bounds", [{"question_limit": 3}, {"limit_bytes": 3 * len(b"EVAL script 0 1")}])
async def test_what_waits_is_bounded(wire, bounds):
    link = RedisLink(wire, bounds=LinkBounds(patience_s=20.0, **bounds))
    task = await serving(link)
    waiting = [ask(link) for _ in range(3)]
    assert await ask(link) == NotAsked("too much waits for Redis already", is_failure=False)
    wire.answers.put_nowait([b"1"])
    await waiting[0]
    assert not ask(link).done()
    await stopped(task)
