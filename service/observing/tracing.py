"""Traces of requests for an OpenTelemetry collector: one span for each request, one for each of its stages.

An option: nothing of OpenTelemetry is imported until an endpoint is set, and this is its only user. A span holds the
method, the request's id, its stages and how it ended; never an image, a name or a message. A caller's W3C
`traceparent` makes the request a part of the caller's trace, and decides whether it is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import phosphene
from phosphene.errors import SettingError
from service.variable_kinds import without_secret

__all__ = ["NoTracer", "RequestTrace", "SpanTracer", "Tracer", "open_tracer"]

_FLUSH_LIMIT_S = 5.0
_NS = 1_000_000_000


@runtime_checkable
class RequestTrace(Protocol):
    """The trace of one request; may be told of stages from any thread until the request ends."""

    def stage(self, name: str, duration_s: float) -> None:
        """A stage that took `duration_s` ended now; `name` is one of `metric_labels.STAGES`."""

    def ended(self, code: str) -> None:
        """The request ended with this gRPC code; `OK` unless told."""


@runtime_checkable
class Tracer(Protocol):
    """What traces requests, or does not; a context manager that owns what sends them away."""

    def __enter__(self) -> Tracer:
        """Return the tracer."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what is left, within bounds."""

    def request(
        self, method: str, *, request_id: str, traceparent: str | None = None
    ) -> AbstractContextManager[RequestTrace]:
        """The trace of a request that begins now and ends on leaving.

        Args:
            method: its method.
            request_id: its id, as in the log.
            traceparent: what the caller's metadata says of its own trace.
        """

    def stage(self, name: str, duration_s: float) -> None:
        """The same for the request that the running task answers; nothing outside of one."""


class NoTracer:
    """Traces nothing, at no cost."""

    def __enter__(self) -> NoTracer:
        """Return the tracer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def request(
        self, method: str, *, request_id: str, traceparent: str | None = None
    ) -> AbstractContextManager[RequestTrace]:
        """A trace that keeps nothing."""
        return _NOTHING

    def stage(self, name: str, duration_s: float) -> None:
        """Ignored."""


class _NoTrace:
    def stage(self, name: str, duration_s: float) -> None:
        pass

    def ended(self, code: str) -> None:
        pass


_NO_TRACE = _NoTrace()
_NOTHING = nullcontext(_NO_TRACE)
_CURRENT: ContextVar[RequestTrace] = ContextVar("trace", default=_NO_TRACE)


def open_tracer(endpoint: str | None) -> Tracer:
    """Return what traces requests.

    Args:
        endpoint: a collector that takes OTLP over gRPC, as `http://host:4317` (plain) or `https://host:4317` (TLS);
            None or empty: nothing is traced, and OpenTelemetry need not be installed.

    Raises:
        SettingError: OpenTelemetry is not installed, or the endpoint is no such address.
    """
    if not endpoint:
        return NoTracer()
    shown = without_secret(endpoint)
    if not endpoint.startswith(("http://", "https://")):
        raise SettingError(
            f"PHOSPHENE_TRACES_ENDPOINT is {shown!r}; say http://HOST:PORT (plain) or https://HOST:PORT (TLS)"
        )
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingError(
            f"PHOSPHENE_TRACES_ENDPOINT is {shown!r}, which needs OpenTelemetry ({error.name} is not installed): "
            "pip install -r requirements/tracing.txt, or leave the variable unset"
        ) from error
    # A provider of our own: the global one belongs to whoever embeds us. Its queue is bounded, and drops when full.
    provider = TracerProvider(
        resource=Resource.create({"service.name": "phosphene", "service.version": phosphene.__version__}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_FLUSH_LIMIT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return SpanTracer(provider)


class SpanTracer:
    """Makes spans of an OpenTelemetry provider, which it ends on leaving."""

    def __init__(self, provider: Any, *, unix_time_ns: Callable[[], int] = time.time_ns) -> None:
        """Keep what makes spans, and the clock that stages are laid out on.

        Args:
            provider: an `opentelemetry.sdk.trace.TracerProvider`.
            unix_time_ns: nanoseconds since 1970.
        """
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("phosphene.service", phosphene.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._unix_time_ns = unix_time_ns

    def __enter__(self) -> SpanTracer:
        """Return the tracer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what is left, and end the thread that sends."""
        self._provider.shutdown()

    @contextmanager
    def request(self, method: str, *, request_id: str, traceparent: str | None = None) -> Iterator[RequestTrace]:
        """The span of a request; a `traceparent` that is not well-formed begins a trace of its own."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        carried = {} if traceparent is None else {"traceparent": traceparent}
        span = self._tracer.start_span(
            f"phosphene.v1/{method}",
            # An empty context, so that nothing of the process around us becomes the parent.
            context=self._propagator.extract(carried, context=Context()),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.method": method, "phosphene.request_id": request_id},
            start_time=self._unix_time_ns(),
            record_exception=False,
            set_status_on_exception=False,
        )
        trace = _SpanTrace(self, span)
        token = _CURRENT.set(trace)
        try:
            yield trace
        finally:
            _CURRENT.reset(token)
            span.end(self._unix_time_ns())

    def stage(self, name: str, duration_s: float) -> None:
        """A span under that of the request that the running task answers."""
        _CURRENT.get().stage(name, duration_s)

    def _stage(self, span: Any, name: str, duration_s: float) -> None:
        from opentelemetry.trace import set_span_in_context

        ended_ns = self._unix_time_ns()
        stage = self._tracer.start_span(
            name, context=set_span_in_context(span), start_time=ended_ns - round(duration_s * _NS)
        )
        stage.end(ended_ns)


class _SpanTrace:
    def __init__(self, tracer: SpanTracer, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    def stage(self, name: str, duration_s: float) -> None:
        if self._span.is_recording():
            self._tracer._stage(self._span, name, duration_s)

    def ended(self, code: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.response.status_code", code)
        if code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE"):
            self._span.set_status(StatusCode.ERROR)
