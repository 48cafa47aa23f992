"""Many questions on one call: every question gets one answer, the window holds, uploads are joined or refused."""

import asyncio
import gc
import tracemalloc
import weakref
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import DeadlineExpired, ImageUnreadable, InputError, Overloaded, RateLimited, Unavailable
from service.queries import ExplainQuery, ImageBytes, ImageUpload, Scope
from service.stream_messages import Chunk, Fault, Question
from service.streams import answer_stream
from service.uploads import UploadBudget, _Upload

IDLE_S = 0.001


def question(item, data=b"x"):
    return Question(item, ExplainQuery(scope=Scope(), image=ImageBytes(data)))


def upload(item, size_bytes):
    return Question(item, ExplainQuery(scope=Scope(), image=ImageUpload(size_bytes)))


def uploads(limit_bytes, *, clock=lambda: 0.0):
    """A budget whose clock is set by hand, or stands; the timers of a stream are the loop's."""
    return UploadBudget(limit_bytes, idle_s=IDLE_S, clock=clock)


async def timers():
    """Until every timer of an upload that is due has run: the loop runs timers in the order of their times."""
    await asyncio.sleep(2 * IDLE_S)


async def source(messages):
    for message in messages:
        yield message


async def echo(query):
    if query.image.data == b"bad":
        raise ImageUnreadable("bad")
    return query.image.data


async def answers_to(messages, *, answer=echo, window=4, budget=None):
    found = {}
    async for answered in answer_stream(source(messages), answer, window=window, budget=budget or uploads(1 << 20)):
        assert answered.item not in found
        found[answered.item] = answered.outcome
    return found


async def test_a_failing_item_does_not_end_the_stream():
    found = await answers_to([question(1, b"a"), question(2, b"bad"), Fault(3, InputError("no")), question(4, b"b")])
    assert (found[1], found[4]) == (b"a", b"b")
    assert isinstance(found[2], ImageUnreadable)
    assert str(found[3]) == "no"


async def test_an_item_that_is_given_up_inside_is_answered_and_makes_room():
    async def answer(query):
        if query.image.data == b"gone":
            raise asyncio.CancelledError
        return query.image.data

    asked = [question(1, b"gone"), question(2, b"a"), question(3, b"gone"), question(4, b"gone"), question(5, b"b")]
    async with asyncio.timeout(30):
        found = await answers_to(asked, answer=answer, window=2)
    assert (found[2], found[5]) == (b"a", b"b")
    assert all(isinstance(found[item], Unavailable) for item in (1, 3, 4))


@st.composite
def conversations(draw):
    messages, due = [], {}
    for item in range(draw(st.integers(0, 12))):
        data = draw(st.binary(min_size=1, max_size=40))
        if draw(st.booleans()):
            messages.append(question(item, data))
        else:
            cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=4)) | {0, len(data)})
            messages.append(upload(item, len(data)))
            messages += [Chunk(item, data[start:end]) for start, end in zip(cuts, cuts[1:], strict=False)]
        due[item] = data
    return messages, due


@settings(max_examples=80)
@given(conversations(), st.integers(1, 4))
def test_every_question_gets_its_own_answer(conversation, window):
    messages, due = conversation
    budget = uploads(1 << 20)

    async def answer(query):
        await asyncio.sleep(0)
        return query.image.data

    found = asyncio.run(answers_to(messages, answer=answer, window=window, budget=budget))
    assert {item: data for item, data in found.items() if data != b"bad"} == {
        item: data for item, data in due.items() if data != b"bad"
    }
    assert budget.held_bytes == 0


async def test_the_window_holds_and_the_caller_is_not_read_ahead_of_it():
    gate, read, running, most = asyncio.Event(), [], 0, 0

    async def messages():
        for item in range(20):
            read.append(item)
            yield question(item)

    async def answer(query):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return b""

    stream = answer_stream(messages(), answer, window=3, budget=uploads(0))
    first = asyncio.ensure_future(anext(stream))
    for _ in range(10):
        await asyncio.sleep(0)
    # One message is in hand, waiting for room.
    assert (running, len(read)) == (3, 4)
    gate.set()
    items = {(await first).item} | {answered.item async for answered in stream}
    assert items == set(range(20))
    assert most == 3


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([Chunk(1, b"a")], "chunk came for item 1"),
        ([upload(1, 4), Chunk(2, b"a")], "chunk came for item 2"),
        ([upload(1, 4), question(2)], "item 2 came before item 1"),
        ([upload(1, 4), Chunk(1, b"abcde")], "4 of 4 are still due"),
        ([upload(1, 4), Chunk(1, b"")], "has 0 bytes"),
        ([upload(1, 4), Chunk(1, b"ab")], "ended 2 bytes before"),
    ],
)
async def test_messages_out_of_order_end_the_stream(messages, fault):
    budget = uploads(100)
    with pytest.raises(InputError, match=fault):
        await answers_to(messages, budget=budget)
    assert budget.held_bytes == 0


async def test_a_number_that_is_still_being_answered_ends_the_stream_and_its_work():
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def messages():
        yield question(7)
        await begun.wait()
        yield question(7)

    async def answer(query):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(InputError, match="item 7 is asked again"):
        async for _ in answer_stream(messages(), answer, window=4, budget=uploads(0)):
            pass
    assert cancelled.is_set()


async def test_an_upload_beyond_the_budget_fails_alone_and_is_read_to_its_end():
    budget = uploads(4)
    assert budget.take(1, caller="other", upload_bytes=0)
    found = await answers_to([upload(1, 4), Chunk(1, b"ab"), Chunk(1, b"cd"), question(2, b"z")], budget=budget)
    assert isinstance(found[1], Overloaded)
    assert found[2] == b"z"
    assert budget.held_bytes == 1


async def test_a_lone_upload_may_have_more_than_all_together():
    budget = uploads(3)
    found = await answers_to([upload(1, 4), Chunk(1, b"ab"), Chunk(1, b"cd")], budget=budget)
    assert found[1] == b"abcd"
    assert budget.held_bytes == 0


async def test_a_lone_upload_beyond_the_budget_lets_no_other_begin():
    budget = uploads(3)
    assert budget.take(4, caller="a", upload_bytes=0)
    assert not budget.take(1, caller="b", upload_bytes=0)
    assert budget.take(4, caller="a", upload_bytes=4)
    assert budget.held_bytes == 8


def test_small_chunks_hold_what_they_count():
    data = bytes(200_000)
    tracemalloc.start()
    try:
        coming = _Upload(upload(1, len(data)), len(data), uploads(1 << 20), "")
        for start in range(0, len(data), 2):
            coming.add(data[start : start + 2])
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 1.5 * len(data)
    assert coming.finish().query.image.data == data


async def test_the_chunks_of_a_faulty_question_are_read_past():
    found = await answers_to([Fault(1, InputError("no"), upload_bytes=2), Chunk(1, b"ab"), question(2, b"z")])
    assert str(found[1]) == "no"
    assert found[2] == b"z"


async def test_a_faulty_question_is_answered_before_its_chunks_come_and_they_need_not():
    answered = asyncio.Event()

    async def messages():
        yield Fault(1, InputError("no"), upload_bytes=2**63)
        await answered.wait()
        yield Chunk(1, b"ab")
        yield question(2, b"z")

    stream = answer_stream(messages(), echo, window=4, budget=uploads(0))
    async with asyncio.timeout(30):
        assert (await anext(stream)).item == 1
        answered.set()
        assert [each.outcome async for each in stream] == [b"z"]


async def test_a_stream_cancelled_again_while_it_ends_keeps_nothing_that_was_not_read():
    class Reply:
        pass

    made, ending = [], asyncio.Event()

    async def answer(query):
        if query.image.data == b"last":
            try:
                await asyncio.Event().wait()
            finally:
                ending.set()
        reply = Reply()
        made.append(weakref.ref(reply))
        return reply

    async def read():
        asked = [question(1), question(2), question(3, b"last")]
        async with aclosing(answer_stream(source(asked), answer, window=4, budget=uploads(0))) as stream:
            async for _ in stream:
                await asyncio.Event().wait()

    gc.collect()
    gc.disable()
    try:
        reading = asyncio.create_task(read())
        while len(made) < 2:
            await asyncio.sleep(0)
        reading.cancel()
        await ending.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        del reading
        await asyncio.sleep(0)
        assert [reply() for reply in made] == [None, None]
    finally:
        gc.enable()


async def test_an_item_that_failed_is_told_with_its_traceback_and_then_holds_no_frame():
    told = []

    def on_failed(item, error):
        told.append((item, error.__traceback__ is not None))

    stream = answer_stream(source([question(1, b"bad")]), echo, window=1, budget=uploads(0), on_failed=on_failed)
    (failed,) = [answered async for answered in stream]
    assert told == [(1, True)]
    assert failed.outcome.__traceback__ is None


async def test_items_wait_where_the_answers_before_them_are_large_and_unread():
    begun = []

    async def answer(query):
        begun.append(query.image.data)
        return 2**23

    asked = [question(item, bytes([item])) for item in range(8)]
    stream = answer_stream(
        source(asked),
        answer,
        window=8,
        budget=uploads(0),
        size_of=lambda reply: reply,
        expected_bytes=lambda query: 2**22,
    )
    await anext(stream)
    for _ in range(20):
        await asyncio.sleep(0)
    # Four of 4 MiB, as far as their questions told.
    assert len(begun) == 4
    assert len([answered async for answered in stream]) == 7
    assert len(begun) == 8


async def test_leaving_early_gives_up_what_is_under_way():
    gone = asyncio.Event()

    async def answer(query):
        if query.image.data == b"quick":
            return b""
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    stream = answer_stream(source([question(1), question(2, b"quick")]), answer, window=4, budget=uploads(0))
    assert (await anext(stream)).item == 2
    await stream.aclose()
    assert gone.is_set()


class Silence:
    """A caller that stops in the middle of an upload of ten bytes, and goes on with other messages when told to."""

    def __init__(self, *then):
        self.now_s = 0.0
        self.budget = uploads(100, clock=lambda: self.now_s)
        self._then = then
        self.is_silent, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.stream = answer_stream(self._messages(), echo, window=2, budget=self.budget)

    async def _messages(self):
        yield upload(1, 10)
        yield Chunk(1, b"abcde")
        self.is_silent.set()
        await self.may_go_on.wait()
        for message in self._then:
            yield message

    async def grows_too_long(self):
        """What the caller is told then."""
        answer = asyncio.ensure_future(anext(self.stream))
        await self.is_silent.wait()
        await timers()
        assert self.budget.held_bytes == 5
        self.now_s += IDLE_S
        async with asyncio.timeout(30):
            return await answer


LATE = (Chunk(1, b"fgh"), Chunk(1, b"ij"))


@pytest.mark.parametrize("late", [(), LATE[:1], LATE])
async def test_an_upload_that_stands_still_is_dropped_and_the_stream_goes_on(late):
    silence = Silence(*late, question(2, b"z"), upload(1, 2), Chunk(1, b"a"), Chunk(1, b"b"))
    dropped = await silence.grows_too_long()
    assert dropped.item == 1
    assert isinstance(dropped.outcome, DeadlineExpired)
    assert "PHOSPHENE_UPLOAD_IDLE_S" in str(dropped.outcome)
    assert "5 of 10 bytes" in str(dropped.outcome)
    assert silence.budget.held_bytes == 0
    silence.may_go_on.set()
    assert {answered.item: answered.outcome async for answered in silence.stream} == {1: b"ab", 2: b"z"}
    assert silence.budget.held_bytes == 0


async def test_a_stream_may_end_after_an_upload_of_its_was_dropped():
    silence = Silence(*LATE[:1])
    await silence.grows_too_long()
    silence.may_go_on.set()
    assert [answered async for answered in silence.stream] == []


async def test_a_dropped_upload_takes_no_more_than_was_announced():
    silence = Silence(Chunk(1, b"fghij!"))
    await silence.grows_too_long()
    silence.may_go_on.set()
    with pytest.raises(InputError, match="5 of 10 are still due"):
        await anext(silence.stream)


async def test_a_caller_that_is_silent_after_its_upload_was_refused_is_told_of_the_refusal():
    silence = Silence()
    silence.budget.take(60, caller="", upload_bytes=0)
    dropped = asyncio.ensure_future(anext(silence.stream))
    await silence.is_silent.wait()
    silence.now_s += IDLE_S
    assert isinstance((await dropped).outcome, Overloaded)
    await silence.stream.aclose()
    assert silence.budget.held_bytes == 60


async def test_an_upload_that_comes_slowly_is_not_dropped():
    now_s = 0.0
    budget = uploads(100, clock=lambda: now_s)

    async def slowly():
        nonlocal now_s
        yield upload(1, 5)
        for byte in b"abcde":
            now_s += 0.9 * IDLE_S
            await timers()
            yield Chunk(1, bytes([byte]))

    (answered,) = [answered async for answered in answer_stream(slowly(), echo, window=1, budget=budget)]
    assert answered.outcome == b"abcde"


async def test_leaving_in_the_middle_of_an_upload_leaves_nobody_reading():
    silence = Silence()
    answer = asyncio.ensure_future(anext(silence.stream))
    await silence.is_silent.wait()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    await silence.stream.aclose()
    assert silence.budget.held_bytes == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_caller_that_sends_no_upload_to_its_end_keeps_nobody_else_out():
    budget, held = uploads(40), asyncio.Event()

    async def unfinished():
        yield upload(1, 50)
        yield Chunk(1, b"x" * 15)
        held.set()
        await asyncio.Event().wait()

    streams = []
    for _ in range(3):
        streams.append(
            asyncio.ensure_future(anext(answer_stream(unfinished(), echo, window=1, budget=budget, caller="slow")))
        )
        await held.wait()
        held.clear()
    assert budget.held_bytes == 15
    honest = [upload(2, 20), Chunk(2, b"a" * 10), Chunk(2, b"b" * 10)]
    async for answered in answer_stream(source(honest), echo, window=1, budget=budget, caller="other"):
        assert answered.outcome == b"a" * 10 + b"b" * 10
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    assert budget.held_bytes == 0


@pytest.mark.parametrize("is_in_chunks", [False, True])
async def test_a_stream_that_waits_for_its_caller_holds_nothing_of_what_it_has_answered(is_in_chunks):
    said, asked = [], []

    def say(message):
        said.append(weakref.ref(message))
        return message

    async def messages():
        if is_in_chunks:
            yield say(upload(1, 1))
            yield say(Chunk(1, b"x"))
        else:
            yield say(question(1))
        await asyncio.Event().wait()

    async def answer(query):
        asked.append(weakref.ref(query))
        return query.image.data

    async with aclosing(answer_stream(messages(), answer, window=4, budget=uploads(1))) as stream:
        assert (await anext(stream)).outcome == b"x"
        for _ in range(5):
            await asyncio.sleep(0)
        assert [held() for held in (*said, *asked)] == [None] * (len(said) + 1)


async def test_items_at_fault_count_as_items_of_a_caller():
    counted = 0

    async def limit():
        nonlocal counted
        counted += 1
        if counted > 2:
            raise RateLimited("too often", retry_after_s=1.0)

    asked = [Fault(1, InputError("no")), question(2), Fault(3, InputError("no")), question(4)]
    found = {}
    async for answered in answer_stream(source(asked), echo, window=4, budget=uploads(0), limit=limit):
        found[answered.item] = answered.outcome
    assert isinstance(found[1], InputError)
    assert found[2] == b"x"
    assert [type(found[item]) for item in (3, 4)] == [RateLimited, RateLimited]
