"""Health, reflection, metrics; and the process: its ready line, its drain, its exit status."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field

import grpc.aio
import pytest
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from phosphene.errors import DeviceFailed, SettingError
from phosphene.v1 import explain_pb2, models_pb2, service_pb2_grpc, values_pb2
from service.__main__ import main
from service.observing.metric_events import Metrics
from service.observing.metric_labels import CODES, REFUSALS, STAGES
from service.observing.metrics_server import MetricsServer
from service.server import METHODS, SERVICE
from service.settings import ListenAddress
from tests.fakes import CORPUS, FakeEngine, fake_entry
from tests.service.conftest import ANY_PORT, always, serving, settings_with

VARIABLES = {
    "PHOSPHENE_BUNDLES": "colours=unused",
    "PHOSPHENE_LISTEN": "127.0.0.1:0",
    "PHOSPHENE_METRICS_LISTEN": "127.0.0.1:0",
}
EXPLAIN = explain_pb2.ExplainRequest(
    image=values_pb2.ImageQuery(data=CORPUS["red-1"]),
    parts=[explain_pb2.EXPLAIN_PART_NEURONS, explain_pb2.EXPLAIN_PART_FIDELITY],
)


async def health_of(channel, service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def scrape(address):
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return text.partition("\r\n\r\n")[2]


def values(page):
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line[:1] not in ("", "#")
    }


async def test_health_is_not_serving_until_loaded_and_again_at_the_end():
    async with serving() as running:
        await running.server.say_serving(False)
        for name in ("", SERVICE):
            assert await health_of(running.channel, name) == health_pb2.HealthCheckResponse.NOT_SERVING
        await running.server.say_serving(True)
        for name in ("", SERVICE):
            assert await health_of(running.channel, name) == health_pb2.HealthCheckResponse.SERVING
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        leaving = asyncio.create_task(running.server.__aexit__(None, None, None))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await leaving


async def test_reflection_lists_the_services(running):
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name async for reply in call for service in reply.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_every_label_exists_before_the_first_event():
    metrics = Metrics(methods=METHODS, queue_capacity=7)
    async with MetricsServer(metrics, ANY_PORT) as page:
        found = values(await scrape(page.address))
    for method in METHODS:
        for code in CODES:
            assert found[f'phosphene_requests_total{{code="{code}",method="{method}"}}'] == 0
    for stage in STAGES:
        assert found[f'phosphene_stage_duration_seconds_count{{stage="{stage}"}}'] == 0
    for reason in REFUSALS:
        assert found[f'phosphene_refused_requests_total{{reason="{reason}"}}'] == 0
    assert found["phosphene_queue_capacity_items"] == 7
    assert all(name.startswith("phosphene_") for name in found)


async def test_metrics_count_what_happened(running):
    await running.stub.Explain(EXPLAIN)
    before = values(await scrape(running.metrics_address))
    await running.stub.Explain(EXPLAIN)
    with pytest.raises(grpc.aio.AioRpcError):
        await running.stub.GetModel(models_pb2.GetModelRequest(bundle="nope"))
    after = values(await scrape(running.metrics_address))
    for line, step in {
        'phosphene_requests_total{code="OK",method="Explain"}': 1,
        'phosphene_requests_total{code="NOT_FOUND",method="GetModel"}': 1,
        'phosphene_refused_requests_total{reason="not_found"}': 1,
        'phosphene_batch_size_items_count{operation="encode"}': 1,
        "phosphene_image_size_pixels_sum": 256,
        "phosphene_image_size_bytes_sum": len(CORPUS["red-1"]),
        "phosphene_answer_l0_neurons_sum": 2,
        "phosphene_answer_fvu_ratio_sum": 0.25,
        **{f'phosphene_stage_duration_seconds_count{{stage="{stage}"}}': 1 for stage in STAGES[1:]},
        'phosphene_stage_duration_seconds_count{stage="receive"}': 2,
    }.items():
        assert after[line] - before[line] == step, line
    assert set(after) == set(before)  # no caller can create a time series


async def test_a_taken_metrics_port_is_named(running):
    with pytest.raises(SettingError, match="PHOSPHENE_METRICS_LISTEN"):
        await MetricsServer(Metrics(methods=METHODS, queue_capacity=1), running.metrics_address).__aenter__()


@dataclass
class Process:
    """A service in a process of its own; its log lines as they come."""

    child: asyncio.subprocess.Process
    lines: list = field(default_factory=list)

    async def line(self, event):
        while data := await self.child.stdout.readline():
            self.lines.append(json.loads(data))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"no {event} in {self.lines}")


@contextlib.asynccontextmanager
async def process(hold_s="0", **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PHOSPHENE_")}
    environment |= VARIABLES | variables
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.service.fake_process",
        hold_s,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Process(child)
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
async def test_a_signal_lets_accepted_work_end_and_exits_with_zero(number):
    async with process(hold_s="1") as service:
        ready = await service.line("serving")
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING
            host, _, port = ready["metrics"].rpartition(":")
            found = values(await scrape(ListenAddress(host=host, port=int(port))))
            assert [line for line in found if line.startswith("phosphene_artefact_info")]
            call = service_pb2_grpc.PhospheneServiceStub(channel).Explain(EXPLAIN)
            await service.line("holding")
            service.child.send_signal(number)
            await service.line("draining")
            assert not call.done()
            assert (await call).neurons
        await service.line("stopped")
        assert await service.child.wait() == 0
    starting = service.lines[0]
    assert starting["event"] == "starting"
    assert starting["settings"]["network"]["listen"] == "127.0.0.1:0"


async def test_work_beyond_the_drain_time_is_cut_off():
    async with serving(settings=settings_with(network={"drain_s": 0.05})) as running:
        running.engine.gate.clear()
        call = running.stub.Explain(EXPLAIN)
        await asyncio.to_thread(running.engine.entered.acquire)
        leaving = asyncio.create_task(running.server.__aexit__(None, None, None))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        running.engine.gate.set()
        await leaving


@pytest.fixture
def environment(monkeypatch):
    """Settings of a service that could start; the handlers of the logs as they were, afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    for name in [name for name in os.environ if name.startswith("PHOSPHENE_")]:
        monkeypatch.delenv(name)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    yield monkeypatch
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize("variable", ["PHOSPHENE_LISTEN", "PHOSPHENE_METRICS_LISTEN"])
def test_a_port_in_use_is_named_and_exits_with_two(environment, capsys, variable):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        environment.setenv(variable, address)
        assert main(lambda settings, on_stage: pytest.fail("loaded for nothing")) == 2
    captured = capsys.readouterr()
    assert f"{variable} is {address}" in captured.err
    assert "Traceback" not in captured.err + captured.out
    last = json.loads(captured.out.splitlines()[-1])
    assert last["event"] == "cannot serve"


def test_bad_settings_exit_with_two_before_anything_is_opened(environment, capsys):
    environment.setenv("PHOSPHENE_BATCH_IMAGES", "0")
    environment.setenv("PHOSPHENE_TYPO", "1")
    assert main(lambda settings, on_stage: pytest.fail("opened")) == 2
    errors = capsys.readouterr().err
    assert "PHOSPHENE_BATCH_IMAGES is '0'" in errors
    assert "PHOSPHENE_TYPO" in errors


class LostEngine(FakeEngine):
    """Its device is lost before it answers anything."""

    def run(self, pixels, want):
        raise DeviceFailed("the device is lost to this process")


def test_a_device_that_fails_before_anything_is_served_exits_with_one(environment, capsys):
    environment.setenv("PHOSPHENE_DECODE_WORKERS", "1")
    engine = LostEngine()
    assert main(always([fake_entry(engine)], engine)) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("device failed", "the device is lost to this process")


def test_the_service_runs_on_uvloop(environment):
    loops = []

    async def serve(settings, make_opener):
        loops.append(asyncio.get_running_loop())

    environment.setattr("service.__main__._serve", serve)
    assert main() == 0
    assert [type(loop) for loop in loops] == [uvloop.Loop]
