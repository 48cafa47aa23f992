"""A device that hangs or fails: health checks are told, and the service itself finds out when it answers again."""

import asyncio

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from phosphene.v1 import explain_pb2, values_pb2
from tests.fakes import CORPUS
from tests.service.conftest import serving, settings_with


async def test_a_stalled_device_is_told_and_recovers_without_traffic():
    async with serving(settings=settings_with(engine={"stall_s": 0.2})) as running:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
        statuses = health_pb2.HealthCheckResponse
        assert (await watch.read()).status == statuses.SERVING
        # What hangs fails in the end: only work that the service gives the device by itself can succeed.
        running.engine.is_poison = lambda pixels: pixels[0].mean() > 200
        running.engine.gate.clear()
        call = running.stub.Explain(explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=CORPUS["red-1"])))
        await asyncio.to_thread(running.engine.entered.acquire)
        assert (await watch.read()).status == statuses.NOT_SERVING
        running.engine.gate.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert (await asyncio.wait_for(watch.read(), 20)).status == statuses.SERVING
        watch.cancel()


async def test_a_device_that_fails_for_a_while_is_asked_again_without_traffic():
    async with serving(settings=settings_with(engine={"stall_s": 0.2})) as running:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
        statuses = health_pb2.HealthCheckResponse
        assert (await watch.read()).status == statuses.SERVING
        # The caller's image, and what the service sends first and second by itself.
        failures = iter([True] * 3)
        running.engine.is_poison = lambda pixels: next(failures, False)
        running.engine.gate.clear()
        call = running.stub.Explain(explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=CORPUS["red-1"])))
        await asyncio.to_thread(running.engine.entered.acquire)
        assert (await watch.read()).status == statuses.NOT_SERVING
        running.engine.gate.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert (await asyncio.wait_for(watch.read(), 20)).status == statuses.SERVING
        watch.cancel()
