"""What goes around every method, with a context in hand: what a caller that leaves leaves behind."""

import asyncio
from types import SimpleNamespace

import pytest

from service.interceptor import AnswerInterceptor
from service.observing.metrics import Metrics
from service.server import METHODS, SERVICE


class StuckContext:
    """A call whose caller reads nothing."""

    def __init__(self):
        self.is_writing = asyncio.Event()

    def invocation_metadata(self):
        return ()

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def time_remaining(self):
        return None

    def add_done_callback(self, callback):
        pass

    def set_trailing_metadata(self, metadata):
        pass

    async def write(self, message):
        self.is_writing.set()
        await asyncio.Event().wait()

    async def abort(self, code, details, trailing_metadata):
        raise AssertionError(code)


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

    async def continuation(details):
        return handler

    wrapped = await interceptor.intercept_service(
        continuation, SimpleNamespace(method=f"/{SERVICE}/ExplainImages", invocation_metadata=())
    )
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
