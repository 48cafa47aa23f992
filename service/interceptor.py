"""Around every method of the service: request id, stage times, one log line, and the status of what went wrong.

The only place where an exception becomes a status (through `outcomes`); methods of other services (health, reflection)
pass untouched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from phosphene.errors import InputError
from service.logs import log_event, new_request_id, request_id
from service.metrics import Metrics
from service.outcomes import outcome_of

__all__ = ["AnswerInterceptor", "CallContext", "deadline_of"]

Clock = Callable[[], float]
_REQUEST_ID_KEY = "x-request-id"


@runtime_checkable
class CallContext(Protocol):
    """What is used of a `grpc.aio.ServicerContext`."""

    def invocation_metadata(self) -> Any:
        """The caller's metadata."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Send metadata before the answer."""

    async def abort_with_status(self, status: Any) -> None:
        """End the call with a rich status."""


def deadline_of(context: CallContext, clock: Clock) -> float | None:
    """The caller's deadline as a time of the injected clock; None without one."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else clock() + remaining_s


class AnswerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the methods of one service."""

    def __init__(self, *, service: str, metrics: Metrics, clock: Clock) -> None:
        """Wrap the methods of the service of this full name."""
        self._prefix = f"/{service}/"
        self._metrics = metrics
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Give back the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        path: str = handler_call_details.method
        if handler is None or not path.startswith(self._prefix):
            return handler
        method = path.removeprefix(self._prefix)
        # Without serialisers gRPC hands over bytes: parsing and serialising belong inside the try below, because what
        # they raise out there reaches the caller with its text.
        return grpc.unary_unary_rpc_method_handler(self._answering(method, handler))

    def _timed(self, stage: str, function: Callable[[Any], Any], argument: Any) -> Any:
        begun_s = self._clock()
        result = function(argument)
        self._metrics.stage_done(stage, self._clock() - begun_s)
        return result

    def _answering(self, method: str, handler: Any) -> Callable[[bytes, CallContext], Awaitable[bytes | None]]:
        def parse(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                raise InputError(f"the request is not a message that {method} takes; make the stubs anew") from error

        async def answering(data: bytes, context: CallContext) -> bytes | None:
            offered = next(
                (value for key, value in context.invocation_metadata() or () if key == _REQUEST_ID_KEY), None
            )
            identity = new_request_id(offered if isinstance(offered, str) else None)
            request_id.set(identity)
            begun_s = self._clock()
            code = "CANCELLED"
            try:
                await context.send_initial_metadata(((_REQUEST_ID_KEY, identity),))
                request = self._timed("receive", parse, data)
                reply = await handler.unary_unary(request, context)
                sent: bytes = self._timed("serialise", handler.response_serializer, reply)
                code = "OK"
                return sent
            except asyncio.CancelledError:
                remaining_s = context.time_remaining()
                if remaining_s is not None and remaining_s <= 0:
                    code = "DEADLINE_EXCEEDED"
                    self._metrics.refused("expired")
                raise
            except Exception as error:
                outcome = outcome_of(error, request_id=identity)
                code = outcome.code.name
                self._metrics.refused(outcome.reason)
                if outcome.code is grpc.StatusCode.INTERNAL:
                    log_event("defect", level=logging.ERROR, error=error, method=method)
                failure = outcome
            finally:
                self._done(method, code, self._clock() - begun_s)
            await context.abort_with_status(rpc_status.to_status(failure.to_status()))
            return None

        return answering

    def _done(self, method: str, code: str, duration_s: float) -> None:
        self._metrics.request_done(method=method, code=code, duration_s=duration_s)
        # Answers are counted by the metrics; at level info a log holds what went wrong.
        level = logging.DEBUG if code == "OK" else logging.INFO
        log_event("answered", level=level, method=method, code=code, duration_ms=round(1000 * duration_s, 3))
