"""Around every method of a service: who calls, how often, request id, one log line, and exactly one outcome for each.

The only place where an exception becomes a status (through `outcomes`); methods of other services (health, reflection)
pass untouched. It wraps methods once, as they are added to a server: one of gRPC's own interceptors is asked anew with
every call. Every request that is received is counted once as received and once as answered, refused, expired, cancelled
or failed, so that the two sums are equal whenever nothing is under way. Every status but OK that is sent is counted by
its reason, too; a caller who has gone, or whose deadline ended the call, is sent none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from phosphene.errors import InputError, Unavailable
from service.answer_size import ANSWER_LIMIT_BYTES, check_answer_size
from service.callers import Caller, Callers
from service.calls_in_hand import CallsInHand
from service.claims import Claim, Lane
from service.observing.logs import log_event, log_soon, new_request_id, request_id
from service.observing.metric_events import Metrics
from service.observing.tracing import NoTracer, Tracer
from service.outcomes import Outcome, outcome_of
from service.told_errors import forget_frames

__all__ = ["AnswerInterceptor", "CallContext", "claim_of"]

Clock = Callable[[], float]
Reply = TypeVar("Reply")
Value = TypeVar("Value")
_REQUEST_ID_KEY = "x-request-id"
_AUTHORIZATION_KEY = "authorization"
_TRACE_KEY = "traceparent"
_ANYBODY = Callers(None)
# A caller whose deadline ends a call says so at about the time at which its deadline is over here.
_DEADLINE_SLACK_S = 0.02
_CALLER: ContextVar[str] = ContextVar("caller", default="")


@runtime_checkable
class CallContext(Protocol):
    """What is used of a `grpc.aio.ServicerContext`."""

    def invocation_metadata(self) -> Any:
        """The caller's metadata."""

    def peer(self) -> str:
        """The other end of the connection."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Send metadata with the status."""

    async def write(self, message: bytes) -> None:
        """Send one message of a stream, once there is room for it."""

    async def abort(self, code: Any, details: Any, trailing_metadata: Any) -> None:
        """End the call with a status."""


def claim_of(context: CallContext, clock: Clock, lane: Lane = Lane.INTERACTIVE) -> Claim:
    """On whose behalf the running request is answered, and until when on the injected clock."""
    remaining_s = context.time_remaining()
    deadline_s = None if remaining_s is None else clock() + remaining_s
    return Claim(caller=_CALLER.get(), lane=lane, deadline_s=deadline_s)


class AnswerInterceptor:
    """Wraps the methods of one service."""

    def __init__(
        self,
        *,
        service: str,
        metrics: Metrics,
        clock: Clock,
        identify: Callable[[str | None, str], Caller] = _ANYBODY.identify,
        limit: Callable[[str], Awaitable[None]] | None = None,
        tracer: Tracer | None = None,
        answer_limit_bytes: int = ANSWER_LIMIT_BYTES,
    ) -> None:
        """Wrap the methods of a service.

        Args:
            service: its full name.
            metrics: told of every request.
            clock: monotonic seconds.
            identify: who calls, by authorization metadata and peer; raises `Unauthenticated`, `PermissionDenied`.
            limit: raises `RateLimited` for a caller who asks too often; None: nobody does.
            tracer: traces requests; None: nobody does.
            answer_limit_bytes: most bytes of one answer.
        """
        self._service = service
        self._metrics = metrics
        self._clock = clock
        self._identify = identify
        self._limit = limit
        self._tracer: Tracer = tracer if tracer is not None else NoTracer()
        self._answer_limit_bytes = answer_limit_bytes
        self.calls = CallsInHand()
        """What is being answered."""

    def wrapped(self, service: str, handlers: Mapping[str, Any]) -> dict[str, Any]:
        """The methods of a service by name, with all this around them where it is the one that is wrapped."""
        if service != self._service:
            return dict(handlers)
        # Without serialisers gRPC hands over bytes: parsing and serialising belong inside `_account`, because what they
        # raise out there reaches the caller with its text.
        return {
            method: grpc.stream_stream_rpc_method_handler(self._stream(method, handler))
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler(self._unary(method, handler))
            for method, handler in handlers.items()
        }

    def _unary(self, method: str, handler: Any) -> Callable[[bytes, CallContext], Awaitable[bytes | None]]:
        async def answering(data: bytes, context: CallContext) -> bytes | None:
            async def work() -> bytes:
                # The request gets no name here: a handler that is done with it lets go of an image of megabytes.
                reply = await handler.unary_unary(self._parsed(method, handler, data), context)
                return self._serialised(handler, reply)

            try:
                return await self._account(method, context, work)
            finally:
                # A call keeps the error that ends it, which has this frame.
                data = b""
                del context, work

        return answering

    def _stream(self, method: str, handler: Any) -> Callable[[AsyncIterator[bytes], CallContext], Awaitable[None]]:
        async def parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            # gRPC's iterator and the generator behind it hold each other, and the last message.
            async with aclosing(cast(AsyncGenerator[bytes, None], aiter(messages))) as received:
                async for data in received:
                    yield _parse(method, handler, data)

        async def answering(messages: AsyncIterator[bytes], context: CallContext) -> None:
            async def work() -> None:
                # Closed here and now: a caller that leaves while a reply is written leaves nothing under way.
                async with aclosing(handler.stream_stream(parsed(messages), context)) as stream:
                    async for reply in stream:
                        await context.write(self._serialised(handler, reply))

            try:
                await self._account(method, context, work)
            finally:
                # A call keeps the error that ends it, which has this frame.
                del messages, context, work

        return answering

    async def _account(self, method: str, context: CallContext, work: Callable[[], Awaitable[Reply]]) -> Reply | None:
        """Answer one call; whatever happens, it ends with one outcome, which is counted once."""
        begun_s = self._clock()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        identity = new_request_id(metadata.get(_REQUEST_ID_KEY))
        request_id.set(identity)
        self._metrics.request_received(method)
        code, outcome = "CANCELLED", "cancelled"
        failure: Outcome
        with self._tracer.request(method, request_id=identity, traceparent=metadata.get(_TRACE_KEY)) as trace:
            try:
                # With the status: sending it ahead would cost a message of its own.
                context.set_trailing_metadata(((_REQUEST_ID_KEY, identity),))
                with self.calls.take():
                    caller = self._identify(metadata.get(_AUTHORIZATION_KEY), context.peer())
                    _CALLER.set(caller.name)
                    if self._limit is not None:
                        await self._limit(caller.name)
                    answer = await work()
                    code, outcome = "OK", "ok"
                    return answer
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # Nobody is left to tell.
                    code, outcome = _left(context)
                    raise
                # Something inside gave up: without a status gRPC would let the caller wait for ever.
                failure = outcome_of(Unavailable("the service gave this request up; try again"), request_id=identity)
                code, outcome = failure.code.name, failure.outcome
                self._metrics.refused(failure.reason)
            except grpc.aio.BaseError:
                # gRPC's own word on a call that is over before the caller's leaving was told: nobody is left here, too.
                code, outcome = _left(context)
                raise
            except Exception as error:
                failure = outcome_of(error, request_id=identity)
                code, outcome = failure.code.name, failure.outcome
                self._metrics.refused(failure.reason)
                if failure.code is grpc.StatusCode.INTERNAL:
                    log_event("defect", level=logging.ERROR, error=error, method=method)
                if failure.code is grpc.StatusCode.UNAVAILABLE:
                    log_event("unavailable", level=logging.WARNING, method=method, reason=failure.message)
                forget_frames(error)
            finally:
                trace.ended(code)
                self._done(method, code, outcome, self._clock() - begun_s)
        status = rpc_status.to_status(failure.to_status())
        ending = context.abort(status.code, status.details, ((_REQUEST_ID_KEY, identity), *status.trailing_metadata))
        # The call keeps the error that this raises, which has this frame.
        del context, work
        await ending
        return None

    def _done(self, method: str, code: str, outcome: str, duration_s: float) -> None:
        self._metrics.request_done(method=method, code=code, outcome=outcome, duration_s=duration_s)
        log_soon("answered", method=method, code=code, caller=_CALLER.get(), duration_ms=round(1000 * duration_s, 3))

    def _parsed(self, method: str, handler: Any, data: bytes) -> Any:
        return self._timed("receive", lambda: _parse(method, handler, data))

    def _serialised(self, handler: Any, reply: Any) -> bytes:
        sent: bytes = self._timed("serialise", lambda: handler.response_serializer(reply))
        check_answer_size(len(sent), self._answer_limit_bytes)
        return sent

    def _timed(self, stage: str, step: Callable[[], Value]) -> Value:
        begun_s = self._clock()
        value = step()
        duration_s = self._clock() - begun_s
        self._metrics.stage_done(stage, duration_s)
        self._tracer.stage(stage, duration_s)
        return value


def _left(context: CallContext) -> tuple[str, str]:
    """Code and outcome of a call that its caller ended, or its deadline."""
    remaining_s = context.time_remaining()
    if remaining_s is not None and remaining_s <= _DEADLINE_SLACK_S:
        return "DEADLINE_EXCEEDED", "expired"
    return "CANCELLED", "cancelled"


def _parse(method: str, handler: Any, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError as error:
        raise InputError(f"the request is not a message that {method} takes; make the stubs anew") from error
