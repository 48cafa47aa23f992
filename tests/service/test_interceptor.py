"""What goes around every method, with a context in hand: what a caller that leaves leaves behind."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import grpc
import pytest
from grpc._cython.cygrpc import ExecuteBatchError

from phosphene.errors import DeadlineExpired, InputError, Unavailable
from service.interceptor import AnswerInterceptor
from service.observing.metric_events import Metrics
from service.server import METHODS, SERVICE
from tests.service.conftest import logged


class StuckContext:
    """A call whose caller reads nothing."""

    def __init__(self, remaining_s=None):
        self.is_writing = asyncio.Event()
        self.remaining_s = remaining_s

    def invocation_metadata(self):
        return ()

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def time_remaining(self):
        return self.remaining_s

    def add_done_callback(self, callback):
        pass

    def set_trailing_metadata(self, metadata):
        pass

    async def write(self, message):
        self.is_writing.set()
        await asyncio.Event().wait()

    async def abort(self, code, details, trailing_metadata):
        raise AssertionError(code)


class ToldContext(StuckContext):
    """A call whose caller hears how it ends."""

    def __init__(self):
        super().__init__()
        self.told = []

    async def abort(self, code, details, trailing_metadata):
        self.told.append(code)


def wrapped_unary(metrics, unary_unary, deserializer=bytes, **options):
    handler = SimpleNamespace(
        request_streaming=False, unary_unary=unary_unary, request_deserializer=deserializer, response_serializer=bytes
    )
    interceptor = AnswerInterceptor(service=SERVICE, metrics=metrics, clock=lambda: 0.0, **options)
    return interceptor.wrapped(SERVICE, {"Explain": handler})["Explain"].unary_unary


def wrapped_stream(metrics, stream_stream, **options):
    handler = SimpleNamespace(
        request_streaming=True, stream_stream=stream_stream, request_deserializer=bytes, response_serializer=bytes
    )
    interceptor = AnswerInterceptor(service=SERVICE, metrics=metrics, clock=lambda: 0.0, **options)
    return interceptor.wrapped(SERVICE, {"ExplainImages": handler})["ExplainImages"].stream_stream


class GoneContext(StuckContext):
    """A call whose caller hung up; gRPC has said so to nobody yet."""

    async def write(self, message):
        raise ExecuteBatchError("Failed grpc_call_start_batch")


async def nothing():
    return
    yield


def counted(metrics, family, label):
    """Samples of a counter by a label, without those at zero."""
    samples = [sample for each in metrics.registry.collect() if each.name == family for sample in each.samples]
    return {sample.labels[label]: int(sample.value) for sample in samples if sample.value}


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (asyncio.CancelledError(), "UNAVAILABLE", "unavailable"),
        (Unavailable("later"), "UNAVAILABLE", "unavailable"),
        (DeadlineExpired("late"), "DEADLINE_EXCEEDED", "expired"),
        (RuntimeError("a defect"), "INTERNAL", "internal"),
    ],
)
async def test_every_status_that_is_sent_has_a_reason(raised, code, reason):
    metrics, context = Metrics(methods=METHODS, queue_capacity=1), ToldContext()

    async def fails(request, context):
        raise raised

    answering = wrapped_unary(metrics, fails)
    assert await answering(b"", context) is None
    assert [status.name for status in context.told] == [code]
    assert counted(metrics, "phosphene_requests", "code") == {code: 1}
    assert counted(metrics, "phosphene_refused_requests", "reason") == {reason: 1}


# A caller's own deadline ends a call a little before ours is over, or a little after.
ENDED_BY_CALLER = [
    (None, "CANCELLED"),
    (3.0, "CANCELLED"),
    (0.004, "DEADLINE_EXCEEDED"),
    (-0.1, "DEADLINE_EXCEEDED"),
]


@pytest.mark.parametrize(("left_s", "code"), ENDED_BY_CALLER)
async def test_a_call_that_its_caller_ends_is_refused_by_nobody(left_s, code):
    metrics, context, begun = Metrics(methods=METHODS, queue_capacity=1), StuckContext(left_s), asyncio.Event()

    async def stuck(request, context):
        begun.set()
        await asyncio.Event().wait()

    answering = wrapped_unary(metrics, stuck)
    call = asyncio.create_task(answering(b"", context))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert counted(metrics, "phosphene_requests", "code") == {code: 1}
    assert counted(metrics, "phosphene_refused_requests", "reason") == {}


async def test_a_request_that_its_handler_is_done_with_is_gone():
    class Request:
        def __init__(self, data):
            self.data = data

    left = []

    async def reads(request, context):
        held = weakref.ref(request)
        del request
        left.append(held())
        return b""

    answering = wrapped_unary(Metrics(methods=METHODS, queue_capacity=1), reads, Request)
    assert await answering(b"1", StuckContext()) == b""
    assert left == [None]


async def test_a_caller_that_leaves_while_it_is_written_to_leaves_nothing_under_way():
    is_over = False

    async def replies(messages, context):
        nonlocal is_over
        try:
            yield b"1"
        finally:
            is_over = True

    kept = []

    def stream_stream(messages, context):
        # Kept, so that the garbage collector does not end it.
        kept.append(replies(messages, context))
        return kept[-1]

    context = StuckContext()
    answering = wrapped_stream(Metrics(methods=METHODS, queue_capacity=1), stream_stream)
    call = asyncio.create_task(answering(nothing(), context))
    await context.is_writing.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert is_over


@pytest.mark.parametrize(("left_s", "code"), ENDED_BY_CALLER)
async def test_an_answer_that_no_caller_takes_any_more_is_no_defect(left_s, code):
    async def replies(messages, context):
        yield b"1"

    metrics = Metrics(methods=METHODS, queue_capacity=1)
    with logged() as lines:
        # gRPC says itself that an answer was not delivered, where its caller has not gone.
        with pytest.raises(ExecuteBatchError):
            await wrapped_stream(metrics, replies)(nothing(), GoneContext(left_s))
        assert not [line for line in lines() if line["event"] == "defect"]
    assert counted(metrics, "phosphene_requests", "code") == {code: 1}
    assert counted(metrics, "phosphene_refused_requests", "reason") == {}


async def test_an_answer_that_no_message_holds_is_refused_with_its_size():
    class Context(StuckContext):
        async def abort(self, code, details, trailing_metadata):
            self.told = code, details

    async def large(request, context):
        return b"x" * 2**20

    metrics, context = Metrics(methods=METHODS, queue_capacity=1), Context()
    answering = wrapped_unary(metrics, large, answer_limit_bytes=2**19)
    assert await answering(b"", context) is None
    code, details = context.told
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.startswith("the answer has 1.0 MiB; the limit is 0.5 MiB: ask for fewer")
    assert counted(metrics, "phosphene_requests", "code") == {"RESOURCE_EXHAUSTED": 1}
    assert counted(metrics, "phosphene_refused_requests", "reason") == {"invalid": 1}


async def test_the_iterator_of_a_stream_is_closed_with_it():
    is_closed = asyncio.Event()

    async def messages():
        try:
            yield b"1"
            yield b"2"
        finally:
            is_closed.set()

    async def replies(messages, context):
        assert await anext(messages) == b"1"
        raise InputError("no more")
        yield

    class Messages:
        """As gRPC's: it and its generator hold each other."""

        def __init__(self):
            self.generator = messages()
            self.myself = self

        def __aiter__(self):
            return self.generator

    gc.collect()
    gc.disable()
    try:
        await wrapped_stream(Metrics(methods=METHODS, queue_capacity=1), replies)(Messages(), ToldContext())
        async with asyncio.timeout(30):
            await is_closed.wait()
    finally:
        gc.enable()
