"""What goes around every method, with a context in hand: what a caller that leaves leaves behind."""

import asyncio
import weakref
from types import SimpleNamespace

import pytest

from phosphene.errors import DeadlineExpired, Unavailable
from service.interceptor import AnswerInterceptor
from service.observing.metric_events import Metrics
from service.server import METHODS, SERVICE


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


def wrapped_unary(metrics, unary_unary, deserializer=bytes):
    handler = SimpleNamespace(
        request_streaming=False, unary_unary=unary_unary, request_deserializer=deserializer, response_serializer=bytes
    )
    interceptor = AnswerInterceptor(service=SERVICE, metrics=metrics, clock=lambda: 0.0)
    return interceptor.wrapped(SERVICE, {"Explain": handler})["Explain"].unary_unary


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


@pytest.mark.parametrize(("left_s", "code"), [(None, "CANCELLED"), (3.0, "CANCELLED"), (-0.1, "DEADLINE_EXCEEDED")])
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

    handler = SimpleNamespace(
        request_streaming=True, stream_stream=stream_stream, request_deserializer=bytes, response_serializer=bytes
    )
    metrics = Metrics(methods=METHODS, queue_capacity=1)
    interceptor = AnswerInterceptor(service=SERVICE, metrics=metrics, clock=lambda: 0.0)
    wrapped = interceptor.wrapped(SERVICE, {"ExplainImages": handler})["ExplainImages"]
    context = StuckContext()

    async def messages():
        return
        yield

    call = asyncio.create_task(wrapped.stream_stream(messages(), context))
    await context.is_writing.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert is_over
