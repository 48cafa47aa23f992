"""Traces, as a collector receives them over gRPC; and that nothing of OpenTelemetry is there unless asked for."""

import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from phosphene.errors import SettingError
from service.observing.tracing import NoTracer, RequestTrace, Tracer, open_tracer

collector_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
collector_pb2_grpc = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")

TRACE_ID, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(collector_pb2_grpc.TraceServiceServicer):
    """Takes what is exported to it."""

    def __init__(self):
        self.requests = queue.Queue()

    def Export(self, request, context):
        self.requests.put(request)
        return collector_pb2.ExportTraceServiceResponse()

    def spans(self):
        """Every span that came, once the tracer has sent what it had."""
        requests = [self.requests.get_nowait() for _ in range(self.requests.qsize())]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting():
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    collector_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def attributes(span):
    return {entry.key: entry.value.string_value for entry in span.attributes}


def test_a_request_and_its_stages_reach_a_collector():
    with collecting() as (collector, endpoint):
        with (
            open_tracer(endpoint) as tracer,
            tracer.request("Explain", request_id="r-1", traceparent=f"00-{TRACE_ID}-{CALLER_SPAN}-01") as trace,
        ):
            assert isinstance(tracer, Tracer)
            assert isinstance(trace, RequestTrace)
            tracer.stage("decode", 0.25)
            trace.stage("queue", 0.5)
            trace.ended("OK")
        request, *stages = sorted(collector.spans(), key=lambda span: span.name != "phosphene.v1/Explain")
    assert {span.name for span in stages} == {"decode", "queue"}
    assert all(span.trace_id.hex() == TRACE_ID for span in (request, *stages))
    assert request.parent_span_id.hex() == CALLER_SPAN
    assert all(span.parent_span_id == request.span_id for span in stages)
    lengths_s = {span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for span in stages}
    assert lengths_s == {"decode": 0.25, "queue": 0.5}
    assert attributes(request) == {
        "rpc.system": "grpc",
        "rpc.method": "Explain",
        "phosphene.request_id": "r-1",
        "rpc.response.status_code": "OK",
    }
    assert not any(span.attributes for span in stages)


def test_the_service_names_itself():
    with collecting() as (collector, endpoint):
        with open_tracer(endpoint) as tracer, tracer.request("Explain", request_id="r"):
            pass
        resource = collector.requests.get_nowait().resource_spans[0].resource
    assert attributes(resource)["service.name"] == "phosphene"


def test_an_error_leaves_its_code_and_none_of_its_text():
    def fail(tracer):
        with tracer.request("Explain", request_id="r") as trace:
            trace.ended("INTERNAL")
            raise RuntimeError("secret path")

    with collecting() as (collector, endpoint):
        with open_tracer(endpoint) as tracer, pytest.raises(RuntimeError):
            fail(tracer)
        (span,) = collector.spans()
    assert span.status.code == 2
    assert b"secret" not in span.SerializeToString()


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", f"00-{'0' * 32}-{CALLER_SPAN}-01", "\x00" * 55])
def test_a_malformed_parent_begins_a_trace_of_its_own(traceparent):
    with collecting() as (collector, endpoint):
        with open_tracer(endpoint) as tracer, tracer.request("Explain", request_id="r", traceparent=traceparent):
            pass
        (span,) = collector.spans()
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != TRACE_ID


def test_a_caller_who_does_not_record_is_followed():
    with collecting() as (collector, endpoint):
        parent = f"00-{TRACE_ID}-{CALLER_SPAN}-00"
        with open_tracer(endpoint) as tracer, tracer.request("Explain", request_id="r", traceparent=parent) as trace:
            trace.stage("decode", 0.1)
        assert collector.spans() == []


async def test_requests_at_the_same_time_keep_their_own_stages():
    import asyncio

    with collecting() as (collector, endpoint):
        with open_tracer(endpoint) as tracer:
            gate = asyncio.Barrier(3)

            async def answer(name):
                with tracer.request(name, request_id=name):
                    await gate.wait()
                    tracer.stage(f"stage of {name}", 0.1)
                    await gate.wait()

            await asyncio.gather(*(answer(name) for name in "abc"))
            tracer.stage("outside of a request", 0.1)
        spans = {span.name: span for span in collector.spans()}
    assert len(spans) == 6
    for name in "abc":
        assert spans[f"stage of {name}"].parent_span_id == spans[f"phosphene.v1/{name}"].span_id


def test_nothing_is_traced_or_imported_without_an_endpoint():
    program = """
import sys
from service.observing.tracing import open_tracer
for endpoint in (None, ""):
    with open_tracer(endpoint) as tracer, tracer.request("Explain", request_id="r") as trace:
        tracer.stage("decode", 1.0)
        trace.stage("queue", 1.0)
        trace.ended("OK")
sys.stdout.write(repr([name for name in sys.modules if name.startswith("opentelemetry")]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]"
    assert isinstance(NoTracer(), Tracer)


def test_a_missing_package_is_told_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(SettingError, match=r"PHOSPHENE_TRACES_ENDPOINT.*requirements/tracing\.txt"):
        open_tracer("http://127.0.0.1:4317")


def test_an_endpoint_without_a_scheme_is_refused():
    with pytest.raises(SettingError, match="http://HOST:PORT"):
        open_tracer("127.0.0.1:4317")
